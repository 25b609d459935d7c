// SPDX-License-Identifier: Apache-2.0
#include "peft/method.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "common/error.h"
#include "stages.h"

namespace espalier::peft {
namespace {

TinyConfig mini_lm() {
  return {.width = 384,
          .num_blocks = 6,
          .num_heads = 12,
          .feed_forward_width = 1536,
          .vocab_size = 30522,
          .num_positions = 512,
          .num_labels = 2};
}

TEST(TrainedCount, OfMiniLmIsThatOfTheReference) {
  const model::Backbone backbone = plan_tiny(mini_lm());
  const auto expect = [&](const MethodConfig& config, std::int64_t method) {
    const TrainedCount count = count_trained(config, backbone);
    EXPECT_EQ(count.method, method) << config.method;
    EXPECT_EQ(count.head, 148'610) << config.method;
  };
  expect({.method = "full"}, 22'713'986 - 148'610);
  expect({.method = "lora"}, 73'728);
  expect({.method = "lst"}, 317'814);
  expect({.method = "probe"}, 0);
  expect({.method = "prompt"}, 20 * 384);
  expect({.method = "bitfit"}, 174'338 - 148'610);
  const std::int64_t bottleneck = 2 * 384 * 48 + 48 + 384;
  expect({.method = "adapter"}, 12 * bottleneck);
  expect({.method = "adapter", .adapter = {.placement = "parallel"}}, 6 * bottleneck);
}

TEST(TrainedCount, OfTheMeanPooledProbeIsOneClassifier) {
  TinyConfig config = mini_lm();
  config.pooling = "mean";
  const TrainedCount count = count_trained({.method = "probe"}, plan_tiny(config));
  EXPECT_EQ(count.method, 0);
  EXPECT_EQ(count.head, 770);
}

TEST(TrainedCount, OfLstFollowsTheFormulaOfThePaper) {
  // BART-large's encoder: 12 blocks of 198,272, 13 projections of 131,200, 132,096 upwards, 12 gates.
  const model::Backbone large = plan_tiny({.width = 1024,
                                           .num_blocks = 12,
                                           .num_heads = 16,
                                           .feed_forward_width = 4096,
                                           .vocab_size = 100,
                                           .num_positions = 16,
                                           .num_labels = 2});
  EXPECT_EQ(count_trained({.method = "lst"}, large).method, 4'216'972);

  MethodConfig config{.method = "lst"};
  const model::Backbone backbone = plan_tiny(mini_lm());
  const std::int64_t block = 28'272, ladder = 18'480, up = 18'816;
  config.lst.layers = {1, 4};
  EXPECT_EQ(count_trained(config, backbone).method, 2 * (block + ladder) + ladder + up + 6);
  config.lst.ladder_bias = false;
  EXPECT_EQ(count_trained(config, backbone).method, 2 * (block + ladder - 48) + ladder + up + 6);
  config.lst.gate = "none";
  EXPECT_EQ(count_trained(config, backbone).method, 2 * (block + ladder - 48) + ladder + up);
  config.lst.gate = "one";
  EXPECT_EQ(count_trained(config, backbone).method, 2 * block + ladder + up);
}

TEST(TrainedCount, EqualsWhatTheStagesTrain) {
  const TinyModel tiny = make_tiny({});
  for (const MethodConfig& config : all_methods()) {
    const TrainedCount expected = count_trained(config, tiny.backbone);
    std::vector<std::string> names_of_one;
    for (const int num_stages : {1, 2, 3}) {
      SCOPED_TRACE(config.method + ", stages: " + std::to_string(num_stages));
      std::vector<std::string> names;
      TrainedCount found;
      for (const TrainedTensor& tensor : Stages(tiny, config, num_stages).trained()) {
        const bool is_head = tensor.name.starts_with("head.");
        EXPECT_TRUE(is_head || found.head == 0) << "the head's tensors must be the last, found " << tensor.name;
        (is_head ? found.head : found.method) += tensor.value.numel();
        EXPECT_TRUE(tensor.value.is_leaf() && tensor.value.requires_grad()) << tensor.name;
        EXPECT_EQ(tensor.value.scalar_type(), at::kFloat) << tensor.name;
        names.push_back(tensor.name);
      }
      EXPECT_EQ(found.method, expected.method);
      EXPECT_EQ(found.head, expected.head);
      EXPECT_EQ(std::set(names.begin(), names.end()).size(), names.size());
      if (num_stages == 1) {
        names_of_one = names;
      }
      EXPECT_EQ(names, names_of_one);
    }
  }
}

TEST(TrainedTensors, DecayOnlyWhereTheyAreMatrices) {
  const TinyModel tiny = make_tiny({});
  for (const MethodConfig& config : all_methods()) {
    for (const TrainedTensor& tensor : Stages(tiny, config, 1).trained()) {
      const bool is_vector = tensor.name.ends_with("bias") || tensor.name.ends_with("gate") ||
                             tensor.name.find("norm") != std::string::npos;
      EXPECT_EQ(tensor.decays, !is_vector) << tensor.name;
    }
  }
}

TEST(MethodOptions, RefuseWhatIsNotThere) {
  MethodConfig config;
  OptionTable table;
  describe(table, config);
  table.read_text("[peft]\nmethod = lora\n[peft.lora]\nrank = 4\ntargets = feed_forward.up\n", "run.ini");
  EXPECT_EQ(config.method, "lora");
  EXPECT_EQ(config.lora.rank, 4);
  EXPECT_EQ(config.lora.targets, std::vector<std::string>{"feed_forward.up"});
  EXPECT_THROW(table.read_flags({"--peft.method=adapters"}), ConfigError);
  EXPECT_THROW(table.read_flags({"--peft.lst.gate=half"}), ConfigError);
  EXPECT_THROW(table.read_flags({"--peft.lst.reduction=0"}), ConfigError);
  EXPECT_THROW(table.read_flags({"--peft.lora.dropout=1"}), ConfigError);

  const TinyModel tiny = make_tiny({});
  EXPECT_THROW(Stages(tiny, {.method = "adapters"}, 1), ConfigError);
}

TEST(Methods, SayWhichWayTheirGradientGoes) {
  const TinyModel tiny = make_tiny({});
  for (const MethodConfig& config : all_methods()) {
    const Stages stages(tiny, config, 1);
    const bool is_beside = config.method == "lst" || config.method == "last" || config.method == "probe";
    const Route expected = config.method == "meft" ? Route::kReversible : is_beside ? Route::kBeside : Route::kThrough;
    EXPECT_EQ(stages.methods.front()->route(), expected) << config.method;
    EXPECT_EQ(stages.methods.front()->name(), config.method);
  }
}

/// What an export must say of a method on four blocks, at least; null of one that has nothing to say.
nlohmann::json expected_facts(const MethodConfig& config) {
  if (config.method == "lst") {
    const std::vector<std::int64_t> all = {0, 1, 2, 3};
    return {{"reduction", config.lst.reduction},
            {"layers", config.lst.layers.empty() ? all : config.lst.layers},
            {"gate", config.lst.gate}};
  }
  if (config.method == "last") return {{"rank", config.last.rank}, {"group_size", config.last.group_size}};
  if (config.method == "lora") return {{"rank", config.lora.rank}, {"targets", config.lora.targets}};
  if (config.method == "rosa") return {{"rank", config.rosa.rank}, {"sampling", config.rosa.sampling}};
  if (config.method == "adapter") return {{"rank", config.adapter.rank}, {"placement", config.adapter.placement}};
  if (config.method == "prompt") return {{"tokens", config.prompt.tokens}, {"initial", config.prompt.initial}};
  if (config.method == "meft") return {{"rank", config.meft.rank}, {"variant", config.meft.variant}};
  return nullptr;
}

TEST(Methods, TellTheirExportWhatTheyAreOnEveryStage) {
  const TinyModel tiny = make_tiny({});
  for (const MethodConfig& config : all_methods()) {
    SCOPED_TRACE(config.method);
    const nlohmann::json expected = expected_facts(config);
    const Stages stages(tiny, config, 2);
    for (const auto& method : stages.methods) {
      const nlohmann::json facts = method->describe_export();
      ASSERT_EQ(facts.is_null(), expected.is_null());
      for (const auto& [key, value] : expected.items()) EXPECT_EQ(facts.at(key), value) << key;
      if (config.method == "meft") {
        EXPECT_EQ(facts.at("factors").value("kind", "none"), config.meft.factors);
      }
    }
  }
}

}  // namespace
}  // namespace espalier::peft
