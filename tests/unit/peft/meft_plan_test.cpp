// SPDX-License-Identifier: Apache-2.0
#include "peft/meft_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/error.h"
#include "stages.h"

namespace espalier::peft {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

model::Backbone bert(const char* type, int width, int heads, int layers, int vocabulary) {
  return plan_config({{"model_type", type},
                      {"hidden_size", width},
                      {"num_attention_heads", heads},
                      {"intermediate_size", 4 * width},
                      {"num_hidden_layers", layers},
                      {"vocab_size", vocabulary},
                      {"max_position_embeddings", 514},
                      {"pad_token_id", 1}});
}

model::Backbone opt(int width, int layers) {
  return plan_config({{"model_type", "opt"},
                      {"hidden_size", width},
                      {"num_attention_heads", 32},
                      {"ffn_dim", 4 * width},
                      {"num_hidden_layers", layers},
                      {"vocab_size", 50272},
                      {"max_position_embeddings", 2048},
                      {"word_embed_proj_dim", width},
                      {"do_layer_norm_before", true}});
}

model::Backbone t5() {
  return plan_config({{"model_type", "t5"},
                      {"architectures", {"T5ForConditionalGeneration"}},
                      {"d_model", 16},
                      {"num_heads", 2},
                      {"d_kv", 8},
                      {"d_ff", 32},
                      {"num_layers", 2},
                      {"vocab_size", 40},
                      {"feed_forward_proj", "relu"},
                      {"relative_attention_num_buckets", 32}});
}

TEST(MeftCount, IsThePublishedOneForEveryVariant) {
  const auto base = bert("bert", 768, 12, 12, 30522), large = bert("roberta", 1024, 16, 24, 50265);
  for (const std::int64_t variant : {1, 2, 3}) {
    EXPECT_EQ(count_meft({.variant = variant}, base), 313'536);
    EXPECT_EQ(count_meft({.variant = variant}, large), 835'968);
    EXPECT_EQ(count_meft({.variant = variant, .rank = 64, .frozen_bottom = 8}, opt(2048, 24)), 8'456'192);
    EXPECT_EQ(count_meft({.variant = variant, .rank = 64, .frozen_bottom = 16}, opt(4096, 32)), 16'910'336);
    EXPECT_EQ(count_meft({.variant = variant, .rank = 64}, opt(4096, 32)), 33'820'672);
  }
  const auto roberta = count_trained({.method = "meft"}, large);
  EXPECT_EQ(roberta.method + roberta.head, 1'887'618);
}

TEST(MeftCount, ContainsTheFactorsInsideTheBlocks) {
  const auto base = bert("bert", 768, 12, 12, 30522);
  EXPECT_EQ(count_trained({.method = "meft", .meft = {.factors = "lora"}}, base).method, 313'536 + 12 * 2 * 8 * 1536);
  MethodConfig config{.method = "meft", .meft = {.factors = "rosa"}};
  const auto rosa = count_trained(config, base);
  EXPECT_EQ(rosa.method, 313'536 + 12 * 4 * 8 * 1536);
  EXPECT_GT(rosa.head, 0);
  config.rosa.head_trained = false;
  EXPECT_EQ(count_trained(config, base).head, 0);
}

TEST(MeftCount, GrowsByTheConcatMergeAndByNorms) {
  const auto base = bert("bert", 768, 12, 12, 30522);
  EXPECT_EQ(count_meft({.merge = "concat"}, base), 313'536 + 2 * 768 * 768);
  EXPECT_EQ(count_meft({.norm_in_adapter = true}, base), 313'536 + 12 * 2 * 768);
  EXPECT_EQ(count_meft({.cached_top = 5}, base), 313'536) << "where activations are kept changes nothing that trains";
  // A merge behind each stack that has streams.
  const std::int64_t adapter = 2 * 16 * 8 + 8 + 16;
  EXPECT_EQ(count_meft({.merge = "concat"}, t5()), 4 * 2 * adapter + 2 * 2 * 16 * 16);
  EXPECT_EQ(count_meft({.frozen_bottom = 2, .merge = "concat"}, t5()), 2 * 2 * adapter + 2 * 16 * 16);
}

std::string error_of(const MeftConfig& config, const model::Backbone& backbone) {
  try {
    static_cast<void>(plan_meft(config, backbone));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(MeftPlan, RefusesWhatIsUndefined) {
  const auto base = plan_tiny({});
  EXPECT_THAT(error_of({.lambda = 0.3}, base), HasSubstr("peft.meft.lambda: expected 1 / k"));
  EXPECT_THAT(error_of({.beta = -0.5}, base), HasSubstr("peft.meft.beta: expected 1 / k"));
  EXPECT_EQ(error_of({.lambda = 0.3, .inversion = "float"}, base), "");
  EXPECT_THAT(error_of({.frozen_bottom = 4}, base), HasSubstr("peft.meft.frozen_bottom: expected at most 3"));
  EXPECT_THAT(error_of({.reversible_layers = 3, .frozen_bottom = 2}, base),
              HasSubstr("peft.meft.reversible_layers: expected at most 2"));
  EXPECT_THAT(error_of({.cached_top = 5}, base), HasSubstr("peft.meft.cached_top: expected at most 4"));
  EXPECT_THAT(error_of({.reversible_layers = 3, .cached_top = 1}, base), HasSubstr("give one of them"));
  EXPECT_THAT(error_of({.frozen_bottom = 1, .factors = "lora"}, base), HasSubstr("peft.meft.factors=lora"));
  EXPECT_THAT(error_of({.frozen_bottom = 1, .factors = "rosa"}, base), HasSubstr("peft.meft.factors=rosa"));
  EXPECT_THAT(error_of({.variant = 3, .norm_in_adapter = true}, base), HasSubstr("peft.meft.norm_in_adapter"));
  EXPECT_THAT(error_of({.variant = 3}, t5()), HasSubstr("peft.meft.variant: expected 1 or 2 for a decoder"));
}

TEST(MeftPlan, RefusesAnInversionWhoseResultsDependOnTheCut) {
  const TinyModel tiny = make_tiny({});
  const auto stages = [&](const MeftConfig& config, int num_stages) {
    Stages(tiny, {.method = "meft", .meft = config}, num_stages);
  };
  EXPECT_NO_THROW(stages({.inversion = "float"}, 1));
  EXPECT_THROW(stages({.inversion = "float"}, 2), ConfigError);
  EXPECT_NO_THROW(stages({.reversible_layers = 0, .inversion = "float"}, 2));
  EXPECT_NO_THROW(stages({.inversion = "anchored", .anchor_layers = 2}, 2));
  EXPECT_THROW(stages({.inversion = "anchored", .anchor_layers = 2}, 4), ConfigError);
  // Counted from the lowest block with streams: one stage begins at the second above it.
  EXPECT_THROW(stages({.frozen_bottom = 1, .inversion = "anchored", .anchor_layers = 2}, 2), ConfigError);
}

TEST(MeftPlan, MakesTheLowestBlocksReversible) {
  const auto roles = [](const MeftConfig& config) { return plan_meft(config, plan_tiny({})).roles; };
  using enum MeftRole;
  using Roles = std::vector<MeftRole>;
  EXPECT_EQ(roles({}), (Roles{kFrozen, kReversible, kReversible, kReversible, kReversible, kJoint}));
  EXPECT_EQ(roles({.frozen_bottom = 1, .cached_top = 1}),
            (Roles{kFrozen, kFrozen, kReversible, kReversible, kCached, kJoint}));
  EXPECT_EQ(roles({.reversible_layers = 1}), (Roles{kFrozen, kReversible, kCached, kCached, kCached, kJoint}));
}

}  // namespace
}  // namespace espalier::peft
