// SPDX-License-Identifier: Apache-2.0
// B = 3 rows, T = 6 tokens, D = 24.
#include "model/head_layer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/error.h"
#include "model/dropout.h"
#include "model/initial.h"
#include "model/weights.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_model.h"

namespace espalier::model {
namespace {

class HeadTest : public testing::Test {
 protected:
  /// The head alone, as a stage of the model in `folder_` would have it.
  StageSlice head_slice(const HeadRequest& request, std::uint64_t seed = 1) const {
    const auto backbone = read_backbone(folder_.path(), request);
    const auto weights = open_model_folder(folder_.path());
    SliceOptions options;
    options.seed = seed;
    return {backbone, {backbone.num_layers() - 1, backbone.num_layers()}, *weights, options};
  }
  static std::map<std::string, at::Tensor> weights_of(StageSlice& slice) {
    std::map<std::string, at::Tensor> weights;
    slice.visit_weights([&](const std::string& name, const at::Tensor& slot, const std::vector<std::int64_t>& shape) {
      EXPECT_EQ(slot.sizes().vec(), shape);
      weights[name] = slot;
    });
    return weights;
  }
  at::Tensor logits_of(const StageSlice& slice, const ForwardContext& context = {}) const {
    Carry carry = {{"hidden", hidden_}};
    slice.layers().front()->forward(carry, inputs_, context);
    return carry.at("logits");
  }
  void write(const test::TinyModel& model) const { test::write_tiny_model(model, folder_.path()); }

  TemporaryFolder folder_;
  at::Tensor hidden_ = normal_by_name({3, 6, 24}, 1, 1, "hidden");
  StageInputs inputs_;
};

TEST_F(HeadTest, PoolsTheFirstTokenThroughTheDenseLayerOfTheFolder) {
  write({.num_labels = 5, .has_head = true});
  auto slice = head_slice({});
  const auto weights = weights_of(slice);
  const auto pooled =
      at::tanh(at::linear(hidden_.select(1, 0), weights.at("head.dense.weight"), weights.at("head.dense.bias")));
  const auto expected = at::linear(pooled, weights.at("head.classifier.weight"), weights.at("head.classifier.bias"));
  EXPECT_TRUE(at::allclose(logits_of(slice), expected, 1e-5, 1e-6));
  EXPECT_TRUE(
      at::equal(weights.at("head.classifier.weight"), open_model_folder(folder_.path())->get("classifier.weight")));
}

TEST_F(HeadTest, MeanPoolingTakesTheAttendedTokensOnly) {
  write({});
  auto slice = head_slice({.num_labels = 2, .pooling = "mean"});
  const auto weights = weights_of(slice);
  EXPECT_EQ(weights.size(), 2U);  // no dense layer
  inputs_.tensors["attention_mask"] =
      at::tensor({1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}, at::kLong).view({3, 6});
  const auto means = at::stack({hidden_[0].mean(0), hidden_[1].narrow(0, 0, 2).mean(0), hidden_[2][4]});
  const auto expected = at::linear(means, weights.at("head.classifier.weight"), weights.at("head.classifier.bias"));
  EXPECT_TRUE(at::allclose(logits_of(slice), expected, 1e-5, 1e-6));
  // Without dropout, training or not.
  EXPECT_TRUE(at::equal(logits_of(slice, {.is_training = true, .key = {}}), logits_of(slice)));
  inputs_.tensors.clear();
  const auto all =
      at::linear(hidden_.mean(1), weights.at("head.classifier.weight"), weights.at("head.classifier.bias"));
  EXPECT_TRUE(at::allclose(logits_of(slice), all, 1e-5, 1e-6));
}

TEST(PooledHead, LeavesTheClassTokenOfImagesOutOfTheMean) {
  LayerPlan plan{.kind = LayerKind::kHead, .name = "head"};
  plan.head = HeadSpec{.pooling = Pooling::kMean, .first_pooled = 1, .width = 4, .num_labels = 4, .has_dense = false};
  HeadLayer head(plan);
  head.visit_weights([](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& shape) {
    slot = role.ends_with("weight") ? at::eye(4) : at::zeros(shape);
  });
  const at::Tensor hidden = at::arange(24, at::kFloat).view({2, 3, 4}).sin();
  Carry carry{{"hidden", hidden}};
  head.forward(carry, {}, {});
  EXPECT_TRUE(at::allclose(carry.at("logits"), hidden.slice(1, 1).mean(1), 1e-6, 1e-6));
}

TEST_F(HeadTest, DrawsItsDropoutUnderItsOwnDomain) {
  for (const auto* family : {"bert", "roberta"}) {
    write({.family = family, .dropout = 0.3, .has_head = true});
    auto slice = head_slice({});
    const auto weights = weights_of(slice);
    const ForwardContext context{.is_training = true, .key = {5, 6, 7}};
    const LayerPlace place{RandomDomain::kHead, slice.layers().front()->plan().index};
    auto pooled = hidden_.select(1, 0).contiguous();
    if (std::string(family) == "roberta")
      pooled = dropout(pooled, 0.3, dropout_key(context, place, DropoutSite::kPooled));
    pooled = at::tanh(at::linear(pooled, weights.at("head.dense.weight"), weights.at("head.dense.bias")));
    pooled = dropout(pooled, 0.3, dropout_key(context, place, DropoutSite::kClassifier));
    const auto expected = at::linear(pooled, weights.at("head.classifier.weight"), weights.at("head.classifier.bias"));
    EXPECT_TRUE(at::allclose(logits_of(slice, context), expected, 1e-5, 1e-6)) << family;
    EXPECT_FALSE(at::allclose(logits_of(slice), expected)) << family;
  }
}

TEST_F(HeadTest, AFreshClassifierIsDrawnByItsCanonicalName) {
  write({});
  auto slice = head_slice({.num_labels = 3}, /*seed=*/9);
  const auto weights = weights_of(slice);
  EXPECT_TRUE(
      at::equal(weights.at("head.classifier.weight"), normal_by_name({3, 24}, 0.02, 9, "head.classifier.weight")));
  EXPECT_TRUE(at::equal(weights.at("head.classifier.bias"), at::zeros({3})));
  // BERT's pooler is in the folder, RoBERTa's dense layer is not.
  EXPECT_TRUE(
      at::equal(weights.at("head.dense.weight"), open_model_folder(folder_.path())->get("bert.pooler.dense.weight")));
  write({.family = "roberta"});
  auto roberta = head_slice({}, /*seed=*/9);
  EXPECT_TRUE(
      at::equal(weights_of(roberta).at("head.dense.weight"), normal_by_name({24, 24}, 0.02, 9, "head.dense.weight")));
}

TEST_F(HeadTest, AClassifierOfAnotherSizeStartsFresh) {
  write({.num_labels = 5, .has_head = true});
  auto slice = head_slice({.num_labels = 2}, /*seed=*/4);
  const auto weights = weights_of(slice);
  EXPECT_TRUE(
      at::equal(weights.at("head.classifier.weight"), normal_by_name({2, 24}, 0.02, 4, "head.classifier.weight")));
  EXPECT_TRUE(at::equal(weights.at("head.classifier.bias"), at::zeros({2})));
  EXPECT_TRUE(
      at::equal(weights.at("head.dense.weight"), open_model_folder(folder_.path())->get("bert.pooler.dense.weight")));
}

TEST_F(HeadTest, AWeightWithoutItsBiasIsRefused) {
  write({});
  const auto whole = open_model_folder(folder_.path());
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& name : whole->names()) {
    if (name != "bert.pooler.dense.bias") tensors.emplace_back(name, whole->get(name).clone());
  }
  write_safetensors(folder_.path() / "model.safetensors", tensors, {});
  EXPECT_THAT(message_of<ConfigError>([&] { head_slice({}); }), testing::HasSubstr("pooler.dense.bias"));
}

TEST_F(HeadTest, ComputesInFp32WhateverTheHiddenState) {
  write({.has_head = true});
  const auto slice = head_slice({});
  const auto narrow = hidden_.to(at::kBFloat16);
  hidden_ = narrow.to(at::kFloat);
  const auto expected = logits_of(slice);
  hidden_ = narrow;
  EXPECT_TRUE(at::equal(logits_of(slice), expected));
}

}  // namespace
}  // namespace espalier::model
