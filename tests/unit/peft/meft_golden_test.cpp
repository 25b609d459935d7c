// SPDX-License-Identifier: Apache-2.0
// MEFT on BERT equals an implementation in plain PyTorch, whose numbers tools/make_golden_meft.py wrote.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "stages.h"

namespace espalier::peft {
namespace {

class MeftGolden : public testing::TestWithParam<std::int64_t> {};

TEST_P(MeftGolden, LogitsLossAndGradientsAreThoseOfPyTorch) {
  const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden";
  const TinyModel tiny{model::read_backbone(folder / "bert_1", {}), model::open_model_folder(folder / "bert_1")};
  const auto inputs = model::open_safetensors(folder / "bert_1/golden.safetensors");
  const auto golden = model::open_safetensors(folder / "meft_1/golden.safetensors");
  const auto variant = std::to_string(GetParam());
  model::NamedTensors batch;
  for (const char* name : {"input_ids", "attention_mask", "token_type_ids"}) batch[name] = inputs->get(name);

  for (const int num_stages : {1, 3}) {
    Stages stages(tiny, {.method = "meft", .meft = {.variant = GetParam(), .rank = 4}}, num_stages);
    int num_adapters = 0;
    for (const TrainedTensor& tensor : stages.trained()) {
      if (tensor.name.starts_with("head.")) continue;
      tensor.value.detach().copy_(golden->get(variant + ".value." + tensor.name));
      ++num_adapters;
    }
    EXPECT_EQ(num_adapters, 3 * 2 * 4);
    double loss = 0;
    const Step found =
        stages.step(batch, /*context=*/{}, gradient_of_loss(tiny.backbone, inputs->get("labels"), &loss));
    EXPECT_TRUE(at::allclose(found.logits, golden->get(variant + ".logits"), 0, 1e-5));
    EXPECT_NEAR(loss, golden->get(variant + ".loss").item<double>(), 1e-5);
    for (const auto& [name, gradient] : found.gradients) {
      if (name.starts_with("head.dense")) continue;  // frozen there
      const at::Tensor expected = golden->get(variant + ".gradient." + name);
      EXPECT_TRUE(at::allclose(gradient, expected, 1e-4, 1e-5)) << name;
      EXPECT_GT(expected.abs().max().item<double>(), 1e-4) << name << " would say nothing";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, MeftGolden, testing::Values(1, 2, 3));

}  // namespace
}  // namespace espalier::peft
