// SPDX-License-Identifier: Apache-2.0
// Hidden states, logits and losses equal those of `transformers` on the folders that tools/make_golden.py wrote,
// wherever the chain is cut into stages.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "model/input_names.h"
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
    // Those without a model hold what a method makes of one of the others.
    if (std::filesystem::exists(entry.path() / "config.json")) folders.push_back(entry.path());
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
    auto names = input_names(backbone_);
    names.insert("labels");
    for (const auto& name : names) {
      if (golden_->contains(name)) inputs_[name] = golden_->get(name);
    }
    if (golden_->contains("attention_mask")) mask_ = golden_->get("attention_mask");
    if (mask_.defined() && inputs_.contains("vis_feats")) {
      mask_ = at::constant_pad_nd(mask_, {0, inputs_.at("vis_feats").size(1)}, 1);
    }
  }
  /// The padding of the rows that run through `layer`; the targets of an encoder-decoder have no mask here.
  [[nodiscard]] at::Tensor mask_of(const LayerPlan& layer) const {
    return layer.stack == Stack::kDecoder ? at::Tensor() : mask_;
  }
  [[nodiscard]] at::Tensor loss_of(const at::Tensor& logits, const at::Tensor& labels) const {
    const auto rows = labels.size(0);
    if (backbone_.head().is_language_model) {
      const bool is_shifted = !backbone_.is_encoder_decoder();
      return token_loss(logits, labels, is_shifted, count_targets(labels, is_shifted));
    }
    return labels.is_floating_point() ? regression_loss(logits, labels, rows)
                                      : classification_loss(logits, labels, rows);
  }

  std::unique_ptr<WeightSource> weights_, golden_;
  Backbone backbone_;
  NamedTensors inputs_;
  at::Tensor mask_;
};

TEST_P(Parity, HoldsForEveryLayerAtEveryCut) {
  refuse_unknown_tensors(backbone_, *weights_);
  std::set<std::string> compared;
  for (const auto& cuts : test::every_cut(backbone_.num_layers())) {
    SCOPED_TRACE(testing::PrintToString(cuts));
    const auto carry =
        test::run_in_stages(backbone_, *weights_, cuts, inputs_, {}, [&](int index, const Carry& so_far) {
          const auto& layer = backbone_.layer(index);
          if (layer.kind == LayerKind::kHead) return;
          const auto expected = golden_->get("after." + layer.name);
          EXPECT_LT(relative_error(so_far.at("hidden"), expected, mask_of(layer)), kTolerance) << layer.name;
          EXPECT_FALSE(so_far.at("hidden").isnan().any().item<bool>()) << layer.name;
          compared.insert("after." + layer.name);
        });
    if (!golden_->contains("logits")) continue;
    const bool has_tokens = backbone_.head().is_language_model;
    EXPECT_LT(relative_error(carry.at("logits"), golden_->get("logits"),
                             has_tokens ? mask_of(backbone_.chain.back()) : at::Tensor()),
              kTolerance);
    const auto loss = loss_of(carry.at("logits"), golden_->get("labels"));
    EXPECT_LT(relative_error(loss, golden_->get("loss"), {}), kTolerance);
  }
  for (const auto& name : golden_->names()) {
    EXPECT_TRUE(!name.starts_with("after.") || compared.contains(name)) << name << " was compared with nothing";
  }
  EXPECT_EQ(compared.size(), backbone_.chain.size() - 1);
}

TEST_P(Parity, BreaksWhenTheMaskOrTheTokenTypesOrTheBoxesOrTheOrderAreTakenOut) {
  for (const auto* name : {"attention_mask", "token_type_ids", "vis_boxes", "img_order_ids", "obj_order_ids"}) {
    // Padding on the right is never seen by a causal stack.
    const bool is_causal = backbone_.chain[1].block->is_causal;
    if (!inputs_.contains(name) || (is_causal && mask_.select(1, 0).all().item<bool>())) continue;
    auto inputs = inputs_;
    inputs.erase(name);
    double worst = 0;
    test::run_in_stages(backbone_, *weights_, {}, inputs, {}, [&](int layer, const Carry& carry) {
      if (layer != 1) return;
      worst = relative_error(carry.at("hidden"), golden_->get("after." + backbone_.layer(layer).name), mask_);
    });
    EXPECT_GT(worst, 100 * kTolerance) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Parity, testing::ValuesIn(golden_folders()),
                         [](const auto& folder) { return folder.param.filename().string(); });

TEST(ParityFolders, AreThereForEveryFamily) {
  std::map<std::string, int> count;
  for (const auto& folder : golden_folders()) {
    const auto backbone = read_backbone(folder, {});
    ++count[(backbone.visual() != nullptr ? "clip_" : "") + backbone.family->model_type()];
  }
  for (const auto* family : {"bert", "roberta", "t5", "clip_t5", "bart", "opt", "gpt2", "llama", "vit"}) {
    EXPECT_GE(count[family], 3) << family;
  }
}

}  // namespace
}  // namespace espalier::model
