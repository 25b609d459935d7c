// SPDX-License-Identifier: Apache-2.0
// Whole models have the sizes that were published of them: counted from config.json alone, a tied tensor once.
#include <gtest/gtest.h>

#include "peft/method.h"
#include "stages.h"
#include "tests/support/published_models.h"

namespace espalier::peft {
namespace {

using test::published_model;

std::int64_t count_all(const char* name) {
  const auto count = count_trained({.method = "full"}, plan_config(published_model(name)));
  return count.method + count.head;
}

TEST(PublishedSizes, AreThoseOfTheTrueConfigurations) {
  EXPECT_EQ(count_all("t5-base"), 222'903'552);
  EXPECT_EQ(count_all("t5-large"), 737'668'096);
  EXPECT_EQ(count_all("t5-3b"), 2'851'598'336);
  // With its pooler, and a classifier of two classes.
  EXPECT_EQ(count_all("bert-base-uncased"), 109'482'240 + 2 * 768 + 2);
  // For two classes: dense layer and classifier in place of a pooler.
  EXPECT_EQ(count_all("roberta-large"), 355'361'794);
  EXPECT_EQ(count_all("roberta-base"), 124'647'170);
  EXPECT_EQ(count_all("bart-large"), 406'291'456);
  EXPECT_EQ(count_all("opt-1.3b"), 1'315'758'080);
  EXPECT_EQ(count_all("opt-6.7b"), 6'658'473'984);
  EXPECT_EQ(count_all("gpt2-medium"), 354'823'168);
  EXPECT_EQ(count_all("Llama-2-7b"), 6'738'415'616);
  EXPECT_EQ(count_all("vit-base-patch16-224"), 86'567'656);
}

std::int64_t count_lst(const char* name, const LstConfig& lst) {
  return count_trained({.method = "lst", .lst = lst}, plan_config(published_model(name))).method;
}

TEST(PublishedSizes, OfLstAreThoseOfThePaper) {
  const auto *base = "t5-base", *large = "t5-large", *huge = "t5-3b";
  const std::vector<std::int64_t> without_every_fourth = {1, 2, 3, 5, 6, 7, 9, 10, 11};
  const std::vector<std::int64_t> odd = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23};
  const auto both = [](std::int64_t reduction, const std::vector<std::int64_t>& layers) {
    return LstConfig{.reduction = reduction, .layers = layers, .decoder_layers = layers};
  };
  EXPECT_EQ(count_lst(base, both(8, without_every_fourth)), 3'878'712);
  EXPECT_EQ(count_lst(base, both(8, {})), 5'097'240);
  EXPECT_EQ(count_lst(base, both(8, {2, 3, 6, 7, 10, 11})), 2'660'184);
  EXPECT_EQ(count_lst(base, both(8, {3, 7, 11})), 1'441'656);
  EXPECT_EQ(count_lst(base, both(4, {})), 16'386'072);
  EXPECT_EQ(count_lst(base, both(16, {})), 1'775'256);
  EXPECT_EQ(count_lst(base, both(32, {})), 694'872);
  EXPECT_EQ(count_lst(large, both(8, odd)), 9'057'328);
  EXPECT_EQ(count_lst(huge, both(8, {23})), 2'494'896);
  EXPECT_EQ(count_lst("vit-base-patch16-224", {}), 2'376'492);
  const auto clip_t5 = count_trained({.method = "lst", .lst = both(4, {})}, plan_config(published_model("clip-t5")));
  EXPECT_EQ(clip_t5.method + clip_t5.head, 17'967'384);
}

TEST(PublishedSizes, OfLastAreThoseOfItsTables) {
  const model::Backbone base = plan_config(published_model("vit-base-patch16-224"), {.num_labels = 100});
  const auto count = [&](const LastConfig& last) { return count_trained({.method = "last", .last = last}, base); };
  EXPECT_EQ(count({}).head, 76'900);
  struct Row {
    std::int64_t rank, modules, norm, up_bias, qkv_bias, bare;
  };
  for (const Row& row :
       {Row{8, 2, 626'688, 645'120, 645'696, 589'824}, Row{16, 1, 608'256, 617'472, 618'048, 589'824},
        Row{4, 4, 663'552, 700'416, 700'992, 589'824}, Row{8, 1, 313'344, 322'560, 322'848, 294'912}}) {
    LastConfig last{.rank = row.rank, .modules_per_group = row.modules};
    EXPECT_EQ(count(last).method, row.norm);
    last.up_bias = true;
    EXPECT_EQ(count(last).method, row.up_bias);
    last.qkv_bias = true;
    EXPECT_EQ(count(last).method, row.qkv_bias);
    last.up_bias = last.qkv_bias = last.norm_affine = false;
    EXPECT_EQ(count(last).method, row.bare);
  }
  // Further solutions of 0.66 M: modules in groups.
  EXPECT_EQ(count({.rank = 6, .modules_per_group = 3, .norm_affine = false}).method, 663'552);
  EXPECT_EQ(count({.rank = 6, .group_size = 2, .modules_per_group = 6, .norm_affine = false}).method, 663'552);
  EXPECT_EQ(count({.rank = 12, .group_size = 2, .modules_per_group = 3, .norm_affine = false}).method, 663'552);
  EXPECT_EQ(count({.rank = 12, .group_size = 4, .modules_per_group = 6, .norm_affine = false}).method, 663'552);
  EXPECT_EQ(count({.rank = 24, .group_size = 4, .modules_per_group = 3, .norm_affine = false}).method, 663'552);
  EXPECT_EQ(count({.group_size = 3, .modules_per_group = 6}).method, 626'688);
  EXPECT_EQ(count({.rank = 16, .group_size = 3, .modules_per_group = 3, .up_bias = true}).method, 617'472);
}

TEST(PublishedSizes, OfRosaAreThoseOfThePaper) {
  const model::Backbone base = plan_config(published_model("roberta-base"), {.num_labels = 2});
  MethodConfig config{.method = "rosa"};
  for (const auto& [rank, expected] : {std::pair{2, 147'456}, {4, 294'912}, {8, 589'824}}) {
    config.rosa.rank = rank;
    EXPECT_EQ(count_trained(config, base).method, expected);
    EXPECT_EQ(count_trained(config, base).head, 592'130);
  }
  const std::vector<std::string> attention = {"attention.query_key_value", "attention.output"};
  const std::vector<std::string> all = {"attention.query_key_value", "attention.output", "feed_forward.up",
                                        "feed_forward.down"};
  struct Row {
    const char* model;
    std::int64_t of_attention, of_all, biases;  // of the first two: a direction
    double share;
    std::int64_t rank;
  };
  for (const Row& row :
       {Row{"gpt2", 55'296, 147'456, 82'944, 0.05, 38}, Row{"gpt2-medium", 147'456, 393'216, 221'184, 0.025, 25},
        Row{"gpt2-large", 276'480, 737'280, 414'720, 0.1, 128}}) {
    const model::Backbone backbone = plan_config(published_model(row.model));
    EXPECT_EQ(count_trained({.method = "rosa", .rosa = {.rank = 4, .targets = attention}}, backbone).method,
              4 * row.of_attention);
    RosaConfig rosa{.rank = row.share, .targets = all};
    EXPECT_EQ(count_trained({.method = "rosa", .rosa = rosa}, backbone).method, row.rank * row.of_all);
    rosa.biases = "targets";
    EXPECT_EQ(count_trained({.method = "rosa", .rosa = rosa}, backbone).method, row.rank * row.of_all + row.biases);
  }
}

TEST(PublishedSizes, OfAdaptersCountThoseBehindCrossAttentionWhereAskedFor) {
  const auto count = [](const AdapterConfig& adapter) {
    return count_trained({.method = "adapter", .adapter = adapter}, plan_config(published_model("t5-base"))).method;
  };
  EXPECT_EQ(count({}), 3'578'112);  // with the norms of the blocks 1.63 % of T5-base, as in the LST paper
  EXPECT_EQ(count({.norms_trained = true}), 3'578'112 + 60 * 768);
  EXPECT_EQ(count({.cross_attention = true}), 4'472'640);
}

}  // namespace
}  // namespace espalier::peft
