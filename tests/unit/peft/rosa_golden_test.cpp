// SPDX-License-Identifier: Apache-2.0
// ROSA on RoBERTa equals an implementation in plain PyTorch, whose numbers tools/make_golden_rosa.py wrote.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "peft/rosa_split.h"
#include "stages.h"

namespace espalier::peft {
namespace {

class RosaGolden : public testing::Test {
 protected:
  std::filesystem::path folder_ = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden";
  TinyModel tiny_{model::read_backbone(folder_ / "roberta_1", {}), model::open_model_folder(folder_ / "roberta_1")};
  std::unique_ptr<model::WeightSource> inputs_ = model::open_safetensors(folder_ / "roberta_1/golden.safetensors");
  std::unique_ptr<model::WeightSource> golden_ = model::open_safetensors(folder_ / "rosa_1/golden.safetensors");
};

TEST_F(RosaGolden, FactorsAndRestOfGivenDirectionsAreThoseOfPyTorch) {
  const at::Tensor chosen = golden_->get("directions");
  const std::vector<std::int64_t> directions(chosen.const_data_ptr<std::int64_t>(),
                                             chosen.const_data_ptr<std::int64_t>() + chosen.numel());
  Stages full(tiny_, {.method = "full"}, 1);
  for (const char* role : {"query", "key", "value", "output"}) {
    for (int block = 0; block < 3; ++block) {
      const std::string name = "encoder." + std::to_string(block) + ".attention." + role;
      // In double: near-equal singular values turn the rounding of float into other factors of the same weight.
      const at::Tensor weight = full.trained(name + ".weight").detach().to(at::kDouble);
      const RosaParts parts = split_weight(weight, directions, "a");
      EXPECT_TRUE(at::allclose(parts.a, golden_->get("split." + name + ".rosa_a"), 0, 1e-5)) << name;
      EXPECT_TRUE(at::allclose(parts.b, golden_->get("split." + name + ".rosa_b"), 0, 1e-5)) << name;
      EXPECT_TRUE(at::allclose(parts.rest, golden_->get("split." + name + ".weight"), 0, 1e-5)) << name;
    }
  }
}

TEST_F(RosaGolden, LogitsLossAndGradientsAreThoseOfPyTorch) {
  model::NamedTensors batch;
  for (const char* name : {"input_ids", "attention_mask"}) batch[name] = inputs_->get(name);
  for (const int num_stages : {1, 3}) {
    Stages stages(tiny_, {.method = "rosa", .rosa = {.rank = 4}}, num_stages);
    for (const auto& method : stages.methods) {
      Resampling* resampling = method->resampling();
      for (int j = 0; j < resampling->num_weights(); ++j) {
        for (const auto& [name, tensor] : resampling->parts(j)) tensor.copy_(golden_->get("value." + name));
      }
    }
    double loss = 0;
    const Step found =
        stages.step(batch, /*context=*/{}, gradient_of_loss(tiny_.backbone, inputs_->get("labels"), &loss));
    EXPECT_TRUE(at::allclose(found.logits, golden_->get("logits"), 0, 1e-5));
    EXPECT_NEAR(loss, golden_->get("loss").item<double>(), 1e-5);
    int num_compared = 0;
    for (const auto& [name, gradient] : found.gradients) {
      if (name.starts_with("head.")) continue;
      EXPECT_TRUE(at::allclose(gradient, golden_->get("gradient." + name), 1e-4, 1e-5)) << name;
      ++num_compared;
    }
    EXPECT_EQ(num_compared, 3 * 4 * 2);
  }
}

}  // namespace
}  // namespace espalier::peft
