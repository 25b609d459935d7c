// SPDX-License-Identifier: Apache-2.0
// What parity with the reference does not show: fresh visual weights, the text apart from the images, and refusals.
// B = 2 rows, T = 5 words, V = 4 visual tokens, F = 6, D = 12.
#include "model/visual_embedding.h"

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "common/error.h"
#include "model/embedding_layer.h"
#include "model/initial.h"
#include "model/weights.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_model.h"

namespace espalier::model {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class VisualEmbeddingTest : public testing::Test {
 protected:
  VisualEmbeddingTest() {
    test::write_tiny_model({.family = "clip_t5", .num_blocks = 2, .width = 12, .heads = 2, .ff = 16}, folder_.path());
    inputs_ = {{"input_ids", at::arange(3, 13, at::kLong).view({2, 5})},
               {"attention_mask", at::tensor({1, 1, 1, 1, 1, 1, 1, 1, 0, 0}, at::kLong).view({2, 5})},
               {"decoder_input_ids", at::ones({2, 3}, at::kLong)},
               {"vis_feats", normal_by_name({2, 4, 6}, 1, 1, "features")},
               {"vis_boxes", uniform_by_name({2, 4, 4}, 1, 1, "boxes").abs()}};
  }
  /// Rewrites config.json with `key` at `value`.
  Backbone backbone_with(const std::string& key, const nlohmann::json& value) const {
    auto config = nlohmann::json::parse(std::ifstream(folder_ / "config.json"));
    config[key] = value;
    std::ofstream(folder_ / "config.json") << config.dump();
    return read_backbone(folder_.path(), {});
  }
  std::string refused_config(const std::string& key, const nlohmann::json& value) const {
    const auto old = nlohmann::json::parse(std::ifstream(folder_ / "config.json"));
    std::string text;
    try {
      backbone_with(key, value);
    } catch (const ConfigError& error) {
      text = error.what();
    }
    std::ofstream(folder_ / "config.json") << old.dump();
    return text;
  }
  /// The embedding of the encoder, of the folder's tensors without those in `left_out`.
  StageSlice embedding_slice(const std::vector<std::string>& left_out = {}, const SliceOptions& options = {}) const {
    const auto source = open_model_folder(folder_.path());
    std::vector<std::pair<std::string, at::Tensor>> kept;
    for (const auto& name : source->names()) {
      const bool is_left_out = std::any_of(left_out.begin(), left_out.end(),
                                           [&](const std::string& part) { return name.find(part) != name.npos; });
      if (!is_left_out) kept.emplace_back(name, source->get(name).clone());
    }
    write_safetensors(folder_ / "kept.safetensors", kept, {});
    return {read_backbone(folder_.path(), {}), {0, 1}, *open_safetensors(folder_ / "kept.safetensors"), options};
  }
  static std::map<std::string, at::Tensor> weights_of(StageSlice& slice) {
    std::map<std::string, at::Tensor> weights;
    slice.visit_weights([&](const std::string& name, const at::Tensor& slot,
                            const std::vector<std::int64_t>& /*shape*/) { weights[name] = slot; });
    return weights;
  }
  std::string refused_input(const std::string& name, const at::Tensor& value) const {
    auto inputs = inputs_;
    inputs[name] = value;
    try {
      [[maybe_unused]] const auto prepared = embedding_slice().prepare(inputs);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  }

  TemporaryFolder folder_;
  NamedTensors inputs_;
};

TEST_F(VisualEmbeddingTest, StartsFreshAsAWholeWhereTheFolderIsAPlainT5) {
  auto slice = embedding_slice({"visual_embedding"}, {.compute_type = at::kBFloat16, .seed = 3});
  const auto weights = weights_of(slice);
  const auto features = weights.at("embedding.visual.features.weight");
  EXPECT_EQ(features.scalar_type(), at::kFloat);
  EXPECT_EQ(weights.at("embedding.token.weight").scalar_type(), at::kBFloat16);
  EXPECT_LE(features.abs().max().item<double>(), 1 / std::sqrt(6.0));
  EXPECT_GT(features.std().item<double>(), 0.15);
  EXPECT_GT(weights.at("embedding.visual.boxes.bias").abs().min().item<double>(), 0);
  EXPECT_TRUE(at::equal(weights.at("embedding.visual.boxes_norm.weight"), at::ones({12})));
  EXPECT_GT(weights.at("embedding.visual.image_order.weight").std().item<double>(), 0.5);
  auto again = embedding_slice({"visual_embedding"}, {.seed = 3});
  EXPECT_TRUE(at::equal(weights_of(again).at("embedding.visual.features.weight"), features));
  auto other = embedding_slice({"visual_embedding"}, {.seed = 4});
  EXPECT_FALSE(at::equal(weights_of(other).at("embedding.visual.features.weight"), features));
}

TEST_F(VisualEmbeddingTest, IsRefusedWhereTheFolderHasAPartOfIt) {
  try {
    embedding_slice({"feat_embedding.1"});
    ADD_FAILURE() << "half an embedding was taken";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("encoder.visual_embedding.feat_embedding.1.weight"));
  }
}

TEST_F(VisualEmbeddingTest, IsWhatEveryMethodTrainsAndTheTextIsNot) {
  const auto backbone = read_backbone(folder_.path(), {});
  std::set<std::string> of_task;
  visit_planned_weights(backbone, [&](const LayerPlan& layer, const std::string& role, const auto& /*shape*/) {
    const auto stored = backbone.family->stored_weight(layer, role);
    if (stored.is_task) of_task.insert(stored.names.front());
  });
  const std::string visual = "encoder.visual_embedding.";
  EXPECT_THAT(of_task, testing::UnorderedElementsAre(
                           visual + "feat_embedding.0.weight", visual + "feat_embedding.0.bias",
                           visual + "feat_embedding.1.weight", visual + "absolute_vis_pos_embedding.0.weight",
                           visual + "absolute_vis_pos_embedding.0.bias", visual + "absolute_vis_pos_embedding.1.weight",
                           visual + "img_order_embedding.weight"));
}

TEST_F(VisualEmbeddingTest, HasThePublishedNumberOfTrainedScalars) {
  backbone_with("d_model", 768);
  const auto backbone = backbone_with("feat_dim", 2048);
  std::int64_t count = 0;
  visit_stored_tensors(backbone, [&](const LayerPlan& /*layer*/, const StoredWeight& stored, const auto& shape) {
    if (stored.is_task) count += c10::multiply_integers(shape);
  });
  EXPECT_EQ(count, 1'581'312);  // VL-Adapter and LST with t5-base
}

TEST_F(VisualEmbeddingTest, GivesTextAndImagesApartAsItGivesThemTogether) {
  const auto slice = embedding_slice();
  const auto& layer = static_cast<const EmbeddingLayer&>(*slice.layers().front());
  const auto inputs = slice.prepare(inputs_);
  ASSERT_EQ(inputs.num_visual_tokens, 4);
  Carry both, text;
  layer.forward(both, inputs, {});
  const auto words = text_only(inputs);
  layer.forward(text, words, {});
  EXPECT_TRUE(at::equal(both.at("hidden"), at::cat({text.at("hidden"), layer.embed_visual(inputs, {})}, 1)));

  EXPECT_EQ(inputs.attention_bias.size(-1), 9);
  EXPECT_TRUE(inputs.attention_bias.slice(-1, 5).eq(0).all().item<bool>());
  EXPECT_TRUE(at::equal(words.attention_bias, inputs.attention_bias.slice(-1, 0, 5)));
  EXPECT_TRUE(words.attention_bias.ne(0).any().item<bool>());
  const auto shape = batch_shape(slice.backbone(), inputs_);
  EXPECT_EQ(shape.tokens, 9);
  EXPECT_EQ(text_only(shape).tokens, 5);
  EXPECT_EQ(text_only(shape).visual_tokens, 0);
}

TEST_F(VisualEmbeddingTest, TakesBoxesForZeroAndObjectsInOrderWhereTheyAreNotGiven) {
  const auto slice = embedding_slice();
  const auto embed = [&](NamedTensors inputs) {
    Carry carry;
    slice.layers().front()->forward(carry, slice.prepare(std::move(inputs)), {});
    return carry.at("hidden");
  };
  auto spelled_out = inputs_;
  spelled_out["vis_boxes"] = at::zeros({2, 4, 4});
  spelled_out["img_order_ids"] = at::zeros({2, 4}, at::kLong);
  spelled_out["obj_order_ids"] = at::arange(4, at::kLong).repeat({2, 1});
  auto bare = inputs_;
  bare.erase("vis_boxes");
  EXPECT_TRUE(at::equal(embed(bare), embed(spelled_out)));
  EXPECT_FALSE(at::equal(embed(bare), embed(inputs_)));
}

TEST_F(VisualEmbeddingTest, RefusesFormsOfTheEmbeddingThatItDoesNotHave) {
  EXPECT_THAT(refused_config("pos_dim", 7), AllOf(HasSubstr("pos_dim"), HasSubstr("found 7")));
  EXPECT_THAT(refused_config("use_vis_layer_norm", false), HasSubstr("use_vis_layer_norm"));
  EXPECT_THAT(refused_config("individual_vis_layer_norm", false), HasSubstr("individual_vis_layer_norm"));
  EXPECT_THAT(refused_config("share_vis_lang_layer_norm", true), HasSubstr("share_vis_lang_layer_norm"));
  EXPECT_THAT(refused_config("additional_visual_embedding_layers", 1), HasSubstr("additional_visual_embedding_layers"));
  EXPECT_THAT(refused_config("n_images", 0), HasSubstr("n_images"));
  const auto without_order = backbone_with("use_vis_order_embedding", false);
  EXPECT_FALSE(without_order.visual()->has_order);
  EXPECT_THROW(refuse_unknown_tensors(without_order, *open_model_folder(folder_.path())), ConfigError);
}

TEST_F(VisualEmbeddingTest, RefusesArraysThatAreNotForIt) {
  EXPECT_THAT(refused_input("vis_feats", at::zeros({2, 4, 7})), AllOf(HasSubstr("feat_dim"), HasSubstr("[2, 4, 7]")));
  EXPECT_THAT(refused_input("vis_feats", at::zeros({3, 4, 6})), HasSubstr("[3, 4, 6]"));
  EXPECT_THAT(refused_input("vis_boxes", at::zeros({2, 3, 4})), AllOf(HasSubstr("vis_boxes"), HasSubstr("[2, 4, 4]")));
  EXPECT_THAT(refused_input("img_order_ids", at::full({2, 4}, 2, at::kLong)), HasSubstr("n_images"));
  EXPECT_THAT(refused_input("obj_order_ids", at::full({2, 4}, -1, at::kLong)), HasSubstr("obj_order_ids"));
  inputs_.erase("vis_feats");
  EXPECT_THAT(refused_input("labels", at::Tensor()), AllOf(HasSubstr("vis_feats"), HasSubstr("none")));
}

TEST(TextModel, RefusesImagesThatItWouldIgnore) {
  const TemporaryFolder folder;
  test::write_tiny_model({.family = "t5"}, folder.path());
  const StageSlice slice(read_backbone(folder.path(), {}), {0, 1}, *open_model_folder(folder.path()), {});
  const auto ids = at::ones({2, 5}, at::kLong);
  try {
    [[maybe_unused]] const auto prepared =
        slice.prepare({{"input_ids", ids}, {"decoder_input_ids", ids}, {"vis_feats", at::zeros({2, 4, 6})}});
    ADD_FAILURE() << "images were ignored";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("vis_feats"));
  }
}

}  // namespace
}  // namespace espalier::model
