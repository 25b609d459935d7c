// SPDX-License-Identifier: Apache-2.0
#include "model/backbone.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/durable_file.h"
#include "common/error.h"
#include "model/slice.h"
#include "tests/support/temporary_folder.h"

namespace espalier::model {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

/// The config.json of MiniLM-L6-H384.
json mini_lm() {
  return json::parse(R"({
    "model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1, "hidden_size": 384, "initializer_range": 0.02, "intermediate_size": 1536,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "num_attention_heads": 12, "num_hidden_layers": 6,
    "pad_token_id": 0, "position_embedding_type": "absolute", "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522,
    "gradient_checkpointing": false, "classifier_dropout": null, "torch_dtype": "float32"})");
}

json roberta() {
  auto config = mini_lm();
  config["model_type"] = "roberta";
  config["pad_token_id"] = 1;
  config["max_position_embeddings"] = 514;
  return config;
}

class BackboneTest : public testing::Test {
 protected:
  Backbone read(const json& config, const HeadRequest& head = {}) const { return read(config.dump(), head); }
  Backbone read(const std::string& text, const HeadRequest& head = {}) const {
    write_file_durably(folder_.path() / "config.json", text);
    return read_backbone(folder_.path(), head);
  }
  std::string refusal(const std::string& text, const HeadRequest& head = {}) const {
    return message_of<ConfigError>([&] { (void)read(text, head); });
  }
  /// Of a config with one key changed; null erases it.
  std::string refusal_of(json config, const std::string& key, const json& value) const {
    config[key] = value;
    return refusal(config.dump());
  }

  TemporaryFolder folder_;
};

std::int64_t count_parameters(const Backbone& backbone) {
  std::int64_t count = 0;
  visit_planned_weights(backbone, [&](const LayerPlan&, const std::string&, const std::vector<std::int64_t>& shape) {
    std::int64_t size = 1;
    for (const auto extent : shape) size *= extent;
    count += size;
  });
  return count;
}

TEST_F(BackboneTest, PlansAsManyParametersAsTransformersHas) {
  constexpr std::int64_t kBackboneWithPooler = 22'713'216;
  EXPECT_EQ(count_parameters(read(mini_lm())), kBackboneWithPooler + 384 * 2 + 2);
  EXPECT_EQ(count_parameters(read(mini_lm())), 22'713'986);
  EXPECT_EQ(count_parameters(read(mini_lm(), {.num_labels = 5})), kBackboneWithPooler + 384 * 5 + 5);
  // A linear probe has no pooler.
  EXPECT_EQ(count_parameters(read(mini_lm(), {.num_labels = 2, .pooling = "mean"})),
            kBackboneWithPooler - 384 * 385 + 770);
}

TEST_F(BackboneTest, ChainsEmbeddingBlocksAndHeadUnderCanonicalNames) {
  const auto backbone = read(mini_lm());
  ASSERT_EQ(backbone.num_layers(), 8);
  EXPECT_EQ(backbone.num_blocks(), 6);
  std::vector<std::string> names;
  for (const auto& layer : backbone.chain) {
    EXPECT_EQ(layer.index, names.size());
    names.push_back(layer.name);
  }
  EXPECT_THAT(names, testing::ElementsAre("embedding", "encoder.0", "encoder.1", "encoder.2", "encoder.3", "encoder.4",
                                          "encoder.5", "head"));
  const auto& block = *backbone.chain[3].block;
  EXPECT_EQ(block.head_width, 32);
  EXPECT_EQ(block.attention_dropout, 0.1);
  EXPECT_EQ(backbone.max_positions, 512);
}

TEST_F(BackboneTest, LeavesRobertaItsPositionsBehindThePadding) {
  const auto backbone = read(roberta());
  EXPECT_EQ(backbone.max_positions, 512);
  EXPECT_EQ(backbone.chain.front().embedding->positions, Positions::kFollowPadding);
  EXPECT_TRUE(backbone.chain.back().head->drops_pooled);
  EXPECT_FALSE(read(mini_lm()).chain.back().head->drops_pooled);
  EXPECT_EQ(read(json(roberta()).dump()).family->model_type(), "roberta");
}

TEST_F(BackboneTest, TakesTheLabelsOfTheFolderUnlessAskedForOthers) {
  auto config = mini_lm();
  EXPECT_EQ(read(config).chain.back().head->num_labels, 2);
  config["id2label"] = {{"0", "a"}, {"1", "b"}, {"2", "c"}};
  EXPECT_EQ(read(config).chain.back().head->num_labels, 3);
  EXPECT_EQ(read(config, {.num_labels = 7}).chain.back().head->num_labels, 7);
  config["num_labels"] = 4;
  EXPECT_THAT(refusal(config.dump()), AllOf(HasSubstr("num_labels"), HasSubstr("expected 3"), HasSubstr("found 4")));
}

TEST_F(BackboneTest, TakesTheDropoutOfTheClassifierFromItsOwnKeyFirst) {
  auto config = mini_lm();
  EXPECT_EQ(read(config).chain.back().head->dropout, 0.1);
  config["classifier_dropout"] = 0.4;
  EXPECT_EQ(read(config).chain.back().head->dropout, 0.4);
  EXPECT_EQ(read(config, {.num_labels = 2, .pooling = "mean"}).chain.back().head->dropout, 0);
}

TEST_F(BackboneTest, RefusesWhatItCannotComputeByKey) {
  const std::vector<std::pair<std::string, json>> cases = {
      {"model_type", "gpt9"},
      {"model_type", nullptr},
      {"position_embedding_type", "relative_key"},
      {"is_decoder", true},
      {"is_decoder", "yes"},
      {"add_cross_attention", true},
      {"quantization_config", {{"bits", 4}}},
      {"pruned_heads", {{"1", {0, 1}}}},
      {"hidden_act", "gelu_10"},
      {"hidden_act", 3},
      {"hidden_size", nullptr},
      {"hidden_size", 0},
      {"hidden_size", "384"},
      {"hidden_size", 384.5},
      {"vocab_size", -1},
      {"num_hidden_layers", 0},
      {"num_attention_heads", 7},
      {"intermediate_size", nullptr},
      {"max_position_embeddings", nullptr},
      {"hidden_dropout_prob", 1.0},
      {"attention_probs_dropout_prob", -0.1},
      {"classifier_dropout", 2},
      {"layer_norm_eps", 0},
      {"initializer_range", -1},
      {"pad_token_id", 30522},
      {"type_vocab_size", -1},
      {"id2label", {"a", "b"}},
  };
  for (const auto& [key, value] : cases) {
    EXPECT_THAT(refusal_of(mini_lm(), key, value),
                AllOf(HasSubstr("config.json"), HasSubstr(key + ":"), HasSubstr("expected"), HasSubstr("found")))
        << key << " = " << value;
  }
  EXPECT_THAT(refusal_of(mini_lm(), "model_type", "gpt9"), AllOf(HasSubstr("bert, roberta"), HasSubstr("gpt9")));
  EXPECT_THAT(refusal_of(roberta(), "max_position_embeddings", 2), HasSubstr("max_position_embeddings"));
}

TEST_F(BackboneTest, RefusesAFolderWithoutAConfigOrWithABrokenOne) {
  EXPECT_THROW(read_backbone(folder_.path() / "nowhere", {}), ConfigError);
  EXPECT_THAT(refusal("{\"model_type\": "), HasSubstr("config.json: expected JSON"));
  EXPECT_THAT(refusal("[1, 2]"), AllOf(HasSubstr("expected a JSON object"), HasSubstr("array")));
}

TEST_F(BackboneTest, RefusesHeadsThatDoNotExist) {
  EXPECT_THAT(refusal(mini_lm().dump(), {.num_labels = -1}), HasSubstr("labels"));
  EXPECT_THAT(refusal(mini_lm().dump(), {.num_labels = 2, .pooling = "max"}),
              AllOf(HasSubstr("pooling"), HasSubstr("max")));
}

}  // namespace
}  // namespace espalier::model
