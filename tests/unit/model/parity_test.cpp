// SPDX-License-Identifier: Apache-2.0
// Hidden states, logits and losses equal those of `transformers` on the folders that tools/make_golden.py wrote,
// wherever the chain is cut into stages.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "model/loss.h"
#include "model/weights.h"
#include "tests/unit/model/stage_chain.h"

namespace espalier::model {
namespace {

constexpr double kTolerance = 1e-5;

std::vector<std::filesystem::path> golden_folders() {
  std::vector<std::filesystem::path> folders;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden")) {
    folders.push_back(entry.path());
  }
  std::sort(folders.begin(), folders.end());
  return folders;
}

/// Largest difference over the largest magnitude, at the tokens that are attended.
double relative_error(const at::Tensor& found, const at::Tensor& expected, const at::Tensor& mask) {
  const auto attended = mask.defined() ? mask.to(at::kFloat).unsqueeze(-1) : at::ones({1}, at::kFloat);
  const auto error = ((found - expected) * attended).abs().max().item<double>();
  return error / (expected * attended).abs().max().item<double>();
}

class Parity : public testing::TestWithParam<std::filesystem::path> {
 protected:
  Parity()
      : weights_(open_model_folder(GetParam())),
        golden_(open_safetensors(GetParam() / "golden.safetensors")),
        backbone_(read_backbone(GetParam(), {})) {
    for (const auto* name : {"input_ids", "attention_mask", "token_type_ids"}) {
      if (golden_->contains(name)) inputs_[name] = golden_->get(name);
    }
    if (golden_->contains("attention_mask")) mask_ = golden_->get("attention_mask");
  }

  std::unique_ptr<WeightSource> weights_, golden_;
  Backbone backbone_;
  NamedTensors inputs_;
  at::Tensor mask_;
};

TEST_P(Parity, HoldsForEveryLayerAtEveryCut) {
  refuse_unknown_tensors(backbone_, *weights_);
  const int head = backbone_.num_layers() - 1;
  int num_compared = 0;
  for (const auto& cuts : test::every_cut(backbone_.num_layers())) {
    SCOPED_TRACE(testing::PrintToString(cuts));
    const auto carry =
        test::run_in_stages(backbone_, *weights_, cuts, inputs_, {}, [&](int layer, const Carry& so_far) {
          if (layer == head) return;
          const auto expected = golden_->get("hidden." + std::to_string(layer));
          EXPECT_LT(relative_error(so_far.at("hidden"), expected, mask_), kTolerance) << "after layer " << layer;
          ++num_compared;
        });
    if (!golden_->contains("logits")) continue;
    EXPECT_LT(relative_error(carry.at("logits"), golden_->get("logits"), {}), kTolerance);
    const auto labels = golden_->get("labels");
    const auto rows = labels.size(0);
    const auto loss = labels.is_floating_point() ? regression_loss(carry.at("logits"), labels, rows)
                                                 : classification_loss(carry.at("logits"), labels, rows);
    EXPECT_LT(relative_error(loss, golden_->get("loss"), {}), kTolerance);
  }
  const auto num_cuts = test::every_cut(backbone_.num_layers()).size();
  EXPECT_EQ(num_compared, head * static_cast<int>(num_cuts));
  EXPECT_FALSE(golden_->contains("hidden." + std::to_string(head))) << "the golden model has more blocks";
}

TEST_P(Parity, BreaksWhenTheMaskOrTheTokenTypesAreTakenOut) {
  for (const auto* name : {"attention_mask", "token_type_ids"}) {
    if (!inputs_.contains(name)) continue;
    auto inputs = inputs_;
    inputs.erase(name);
    double worst = 0;
    test::run_in_stages(backbone_, *weights_, {}, inputs, {}, [&](int layer, const Carry& carry) {
      if (layer == 1) worst = relative_error(carry.at("hidden"), golden_->get("hidden.1"), mask_);
    });
    EXPECT_GT(worst, 100 * kTolerance) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Parity, testing::ValuesIn(golden_folders()),
                         [](const auto& info) { return info.param.filename().string(); });

TEST(ParityFolders, AreThereForBothFamilies) {
  EXPECT_GE(golden_folders().size(), 8U);
}

}  // namespace
}  // namespace espalier::model
