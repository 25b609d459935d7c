// SPDX-License-Identifier: Apache-2.0
#include "peft/meft_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/error.h"
#include "stages.h"
#include "tests/support/published_models.h"

namespace espalier::peft {
namespace {

using ::testing::HasSubstr;

model::Backbone plan_published(const char* name, int labels = 2) {
  return plan_config(test::published_model(name), {.num_labels = labels});
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
  const auto base = plan_published("bert-base-uncased"), large = plan_published("roberta-large");
  for (const std::int64_t variant : {1, 2, 3}) {
    EXPECT_EQ(count_meft({.variant = variant}, base), 313'536);
    EXPECT_EQ(count_meft({.variant = variant}, large), 835'968);
    EXPECT_EQ(count_meft({.variant = variant, .rank = 64, .frozen_bottom = 8}, plan_published("opt-1.3b")), 8'456'192);
    EXPECT_EQ(count_meft({.variant = variant, .rank = 64, .frozen_bottom = 16}, plan_published("opt-6.7b")),
              16'910'336);
    EXPECT_EQ(count_meft({.variant = variant, .rank = 64}, plan_published("opt-6.7b")), 33'820'672);
  }
  const auto roberta = count_trained({.method = "meft"}, large);
  EXPECT_EQ(roberta.method + roberta.head, 1'887'618);
}

TEST(MeftCount, ContainsTheFactorsInsideTheBlocks) {
  const auto base = plan_published("bert-base-uncased");
  EXPECT_EQ(count_trained({.method = "meft", .meft = {.factors = "lora"}}, base).method, 313'536 + 12 * 2 * 8 * 1536);
  MethodConfig config{.method = "meft", .meft = {.factors = "rosa"}};
  const auto rosa = count_trained(config, base);
  EXPECT_EQ(rosa.method, 313'536 + 12 * 4 * 8 * 1536);
  EXPECT_GT(rosa.head, 0);
  config.rosa.head_trained = false;
  EXPECT_EQ(count_trained(config, base).head, 0);
}

TEST(MeftCount, PutsFactorsIntoAdaptedBlocksAlone) {
  const auto base = plan_published("bert-base-uncased");
  MethodConfig config{.method = "meft", .meft = {.frozen_bottom = 8, .factors = "lora"}};
  EXPECT_EQ(count_trained(config, base).method, 4 * 2 * 13'064 + 4 * 2 * 8 * 1536);
  config.lora.targets = {"attention.query", "encoder.9.attention.value"};
  EXPECT_EQ(count_trained(config, base).method, 4 * 2 * 13'064 + 5 * 8 * 1536);
  config.lora.targets = {"encoder.7.attention.value"};
  EXPECT_THAT(config_error([&] { static_cast<void>(count_trained(config, base)); }),
              HasSubstr("peft.lora.targets: expected linears of blocks that take part, found 'encoder.7"));
}

TEST(MeftCount, LeavesThePoolerOfBertOutAsPublished) {
  for (const auto& [labels, expected] : {std::pair{2, 315'074}, {3, 315'843}, {1, 314'305}}) {
    const auto base = plan_published("bert-base-uncased", labels);
    MethodConfig config{.method = "meft"};
    const auto count = count_trained(config, base);
    EXPECT_EQ(count.method + count.head, expected);
    config.meft.pooler_trained = true;
    EXPECT_EQ(count_trained(config, base).head, count.head + 768 * 769);
  }
}

TEST(MeftCount, TakesThePublishedRankOfTheKindOfModel) {
  EXPECT_EQ(count_meft({.frozen_bottom = 8}, plan_published("opt-1.3b")), 8'456'192);
  EXPECT_EQ(count_meft({}, plan_published("bert-base-uncased")), 313'536);
}

TEST(MeftCount, GrowsByTheConcatMergeAndByNorms) {
  const auto base = plan_published("bert-base-uncased");
  EXPECT_EQ(count_meft({.merge = "concat"}, base), 313'536 + 2 * 768 * 768);
  EXPECT_EQ(count_meft({.norm_in_adapter = true}, base), 313'536 + 12 * 2 * 768);
  EXPECT_EQ(count_meft({.cached_top = 5}, base), 313'536) << "where activations are kept changes nothing that trains";
  // A merge behind each stack that has streams.
  const std::int64_t adapter = 2 * 16 * 8 + 8 + 16;
  EXPECT_EQ(count_meft({.merge = "concat"}, t5()), 4 * 2 * adapter + 2 * 2 * 16 * 16);
  EXPECT_EQ(count_meft({.frozen_bottom = 2, .merge = "concat"}, t5()), 2 * 2 * adapter + 2 * 16 * 16);
}

std::string meft_error(const MeftConfig& config, const model::Backbone& backbone) {
  return config_error([&] { static_cast<void>(plan_meft(config, backbone)); });
}

TEST(MeftPlan, RefusesWhatIsUndefined) {
  const auto base = plan_tiny({});
  EXPECT_THAT(meft_error({.lambda = 0.3}, base), HasSubstr("peft.meft.lambda: expected 1 / k"));
  EXPECT_THAT(meft_error({.beta = -0.5}, base), HasSubstr("peft.meft.beta: expected 1 / k"));
  EXPECT_EQ(meft_error({.lambda = 0.3, .inversion = "float"}, base), "");
  EXPECT_THAT(meft_error({.frozen_bottom = 4}, base), HasSubstr("peft.meft.frozen_bottom: expected at most 3"));
  EXPECT_THAT(meft_error({.reversible_layers = 3, .frozen_bottom = 2}, base),
              HasSubstr("peft.meft.reversible_layers: expected at most 2"));
  EXPECT_THAT(meft_error({.cached_top = 5}, base), HasSubstr("peft.meft.cached_top: expected at most 4"));
  EXPECT_THAT(meft_error({.reversible_layers = 3, .cached_top = 1}, base), HasSubstr("give one of them"));
  EXPECT_THAT(meft_error({.variant = 3, .norm_in_adapter = true}, base), HasSubstr("peft.meft.norm_in_adapter"));
  EXPECT_THAT(meft_error({.variant = 3}, t5()), HasSubstr("peft.meft.variant: expected 1 or 2 for a decoder"));
}

TEST(MeftPlan, RefusesAPoolerThatIsNotThereAndWouldNotLearn) {
  TinyModel tiny = make_tiny({});
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> shapes;
  model::visit_stored_tensors(tiny.backbone, [&](const auto& /*layer*/, const auto& stored, const auto& shape) {
    const std::string& name = stored.names.front();
    if (name.find("pooler") == std::string::npos) shapes.emplace_back(name, shape);
  });
  tiny.weights = model::random_weights(shapes, 0.2, 7);
  const auto error_with = [&](bool is_trained) {
    return config_error([&] { Stages(tiny, {.method = "meft", .meft = {.pooler_trained = is_trained}}, 1); });
  };
  EXPECT_THAT(error_with(false), HasSubstr("peft.meft.pooler_trained=false: expected the pooler"));
  EXPECT_EQ(error_with(true), "");
  tiny.weights = model::random_backbone_weights(tiny.backbone, 7);
  EXPECT_EQ(error_with(false), "") << "random weights have one, as pretrained ones do";
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
