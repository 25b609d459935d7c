// SPDX-License-Identifier: Apache-2.0
// Gradients of every weight under full fine-tuning equal PyTorch's, on the folders that tools/make_golden.py wrote and
// on any number of stages; a tied weight's is the sum over its places.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "model/input_names.h"
#include "model/weight_loader.h"
#include "stages.h"

namespace espalier::peft {
namespace {

constexpr double kTolerance = 1e-4;
// Of the model's largest gradient. A bias of keys shifts all scores of a query alike: its gradient is zero but for
// rounding.
constexpr double kNothing = 1e-6;

double largest(const at::Tensor& tensor) {
  return tensor.abs().max().item<double>();
}

/// The first golden folder of a family.
class GoldenGradients : public testing::TestWithParam<const char*> {
 protected:
  explicit GoldenGradients(const std::string& family) {
    const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden" / (family + "_1");
    tiny_ = {model::read_backbone(folder, {}), model::open_model_folder(folder)};
    gradients_ = model::open_safetensors(folder / "gradients.safetensors");
    const auto golden = model::open_safetensors(folder / "golden.safetensors");
    auto names = model::input_names(tiny_.backbone);
    names.insert("labels");
    for (const auto& name : names) {
      if (golden->contains(name)) batch_[name] = golden->get(name);
    }
  }
  [[nodiscard]] std::map<std::string, at::Tensor> found_on(int num_stages, const std::string& method) const {
    Stages stages(tiny_, {.method = method}, num_stages);
    return stages.step(batch_, /*context=*/{}, gradient_of_loss(tiny_.backbone, batch_.at("labels"))).gradients;
  }

  TinyModel tiny_;
  std::unique_ptr<model::WeightSource> gradients_;
  model::NamedTensors batch_;
};

class GradientParity : public GoldenGradients {
 protected:
  GradientParity() : GoldenGradients(GetParam()) {}
};

class VisualGradient : public GoldenGradients {
 protected:
  VisualGradient() : GoldenGradients("clip_t5") {}
};

TEST_P(GradientParity, HoldsForEveryWeightOnAnyNumberOfStages) {
  double largest_of_all = 0;
  for (const auto& name : gradients_->names()) {
    largest_of_all = std::max(largest_of_all, largest(gradients_->get(name)));
  }
  for (int num_stages = 1; num_stages <= tiny_.backbone.num_blocks(); ++num_stages) {
    SCOPED_TRACE("stages: " + std::to_string(num_stages));
    auto found = found_on(num_stages, "full");
    std::set<std::string> compared;
    model::visit_planned_weights(tiny_.backbone, [&](const model::LayerPlan& layer, const std::string& role,
                                                     const std::vector<std::int64_t>& /*shape*/) {
      const auto stored = tiny_.backbone.family->stored_weight(layer, role);
      const auto present = model::present_names(stored, *gradients_);
      const auto name = layer.name + "." + role;
      const auto gradient = found.extract(name);
      if (stored.is_buffer) {
        EXPECT_TRUE(gradient.empty()) << name << " is a buffer";
        return;
      }
      ASSERT_EQ(present.size(), 1U) << name;
      const auto key = present.front() + " part " + std::to_string(stored.part);
      ASSERT_EQ(gradient.empty(), compared.contains(key))
          << name << " must train once, as the first that holds " << key;
      if (!compared.insert(key).second) return;
      const auto expected = model::stored_part(stored, gradients_->get(present.front()));
      const double scale = largest(expected);
      const double error = largest(gradient.mapped() - expected);
      if (scale > kNothing * largest_of_all) {
        EXPECT_LT(error, kTolerance * scale) << name;
      } else {
        EXPECT_LT(error, kNothing * largest_of_all) << name;
      }
    });
    EXPECT_TRUE(found.empty()) << found.begin()->first << " is no weight";
    for (const auto& name : gradients_->names()) {
      EXPECT_TRUE(compared.contains(name + " part 0") || tiny_.backbone.family->is_known_extra(name)) << name;
    }
  }
}

TEST_P(GradientParity, CountsEveryStoredWeightOnce) {
  const auto count = count_trained({.method = "full"}, tiny_.backbone);
  std::int64_t stored = 0;
  for (const auto& name : gradients_->names()) {
    // The table of T5 and BART and its copies.
    stored += name.ends_with(".embed_tokens.weight") && gradients_->contains("shared.weight")
                  ? 0
                  : gradients_->get(name).numel();
  }
  EXPECT_EQ(count.method + count.head, stored);
}

INSTANTIATE_TEST_SUITE_P(Golden, GradientParity,
                         testing::Values("bert", "roberta", "t5", "clip_t5", "bart", "opt", "gpt2", "llama", "vit"),
                         [](const auto& family) { return std::string(family.param); });

TEST_P(VisualGradient, IsTheOneOfFullFineTuningOnAnyNumberOfStages) {
  // Fresh factors change nothing, so that the gradient of what trains beside them is the whole model's.
  for (int num_stages = 1; num_stages <= 3; ++num_stages) {
    SCOPED_TRACE("stages: " + std::to_string(num_stages));
    auto found = found_on(num_stages, GetParam());
    int num_visual = 0;
    model::visit_planned_weights(tiny_.backbone, [&](const model::LayerPlan& layer, const std::string& role,
                                                     const std::vector<std::int64_t>& /*shape*/) {
      const auto name = layer.name + "." + role;
      const auto stored = tiny_.backbone.family->stored_weight(layer, role);
      ASSERT_EQ(found.contains(name), stored.is_task) << name;
      if (!stored.is_task) return;
      ++num_visual;
      const auto expected = gradients_->get(stored.names.front());
      EXPECT_LT(largest(found.at(name) - expected), kTolerance * largest(expected)) << name;
    });
    EXPECT_EQ(num_visual, 7);
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, VisualGradient, testing::Values("lora", "probe"),
                         [](const auto& method) { return std::string(method.param); });

TEST(Copies, OfATiedTableShareMemoryOnOneStageAndNeverALeaf) {
  const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden/t5_1";
  const TinyModel tiny{model::read_backbone(folder, {}), model::open_model_folder(folder)};
  const auto places = [&](int num_stages) {
    std::vector<TrainedTensor> found;
    for (const auto& tensor : Stages(tiny, {.method = "full"}, num_stages).trained()) {
      if (tensor.name == "embedding.token.weight") found.push_back(tensor);
    }
    return found;
  };
  for (const int num_stages : {1, 2, 3}) {
    SCOPED_TRACE(num_stages);
    const auto found = places(num_stages);  // encoder, decoder, head
    ASSERT_EQ(found.size(), 3U);
    const auto share = [&](std::size_t a, std::size_t b) { return found[a].value.is_alias_of(found[b].value); };
    EXPECT_EQ(share(0, 1), num_stages < 3);
    EXPECT_EQ(share(0, 2), num_stages == 1);
    EXPECT_FALSE(share(1, 2) && num_stages > 1);
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(found[i].is_copy, i > 0);
      EXPECT_TRUE(found[i].value.is_leaf() && found[i].value.requires_grad());
      EXPECT_TRUE(at::equal(found[i].value, tiny.weights->get("shared.weight")));
    }
    EXPECT_FALSE(found[0].value.is_same(found[1].value));
  }
}

}  // namespace
}  // namespace espalier::peft
