// SPDX-License-Identifier: Apache-2.0
// Promise 1 for the reversible route: streams, remainders and the memory's gradient do not tell where a chain was cut.
#include <gtest/gtest.h>

#include "common/error.h"
#include "tiny_dataset.h"
#include "tiny_model.h"
#include "training_run.h"

namespace espalier::test {
namespace {

using Case = std::tuple<const char*, int>;  // family, variant

class MeftLayouts : public testing::TestWithParam<Case>, protected TrainingRuns {
 protected:
  MeftLayouts() {
    const std::string family = std::get<0>(GetParam());
    const bool is_pooled = family == "bert";
    const bool has_encoder = family == "t5" || family == "bart";
    request_.model = write_tiny_model({.family = family,
                                       .num_blocks = has_encoder ? 2 : 4,
                                       .num_decoder_blocks = 2,
                                       .width = 16,
                                       .heads = 2,
                                       .ff = 24},
                                      folder_ / "model");
    const char* task = is_pooled         ? "classification"
                       : family == "vit" ? "image_classification"
                       : has_encoder     ? "seq2seq"
                                         : "causal_lm";
    request_.dataset = write_tiny_dataset({.task = task, .num_rows = 240, .longest = 12}, folder_ / "data.h5");
    request_.peft.method = "meft";
    request_.peft.meft.variant = std::get<1>(GetParam());
    request_.peft.meft.rank = 4;
  }
};

TEST_P(MeftLayouts, GiveTheSameLossesAndWeightsBitForBit) {
  // Streams are alike in every variant; beside an encoder there is the gradient of a memory too.
  const auto& [family, variant] = GetParam();
  const bool tries_gpipe = variant == 1 && (family == std::string("bert") || family == std::string("t5"));
  expect_the_same_on_every_layout(tries_gpipe);
}

INSTANTIATE_TEST_SUITE_P(Families, MeftLayouts,
                         testing::Values(Case{"bert", 1}, Case{"bert", 2}, Case{"bert", 3}, Case{"t5", 1},
                                         Case{"bart", 2}, Case{"opt", 1}, Case{"gpt2", 2}, Case{"llama", 3},
                                         Case{"vit", 1}),
                         [](const auto& tested) {
                           return std::string(std::get<0>(tested.param)) + "_meft" +
                                  std::to_string(std::get<1>(tested.param));
                         });

class MeftWithRosa : public testing::Test, protected TrainingRuns {};

TEST_F(MeftWithRosa, GivesTheSameLossesAndWeightsThroughItsEventsBitForBit) {
  request_.model = write_tiny_model({}, folder_ / "model");
  request_.dataset = write_tiny_dataset({}, folder_ / "data.h5");
  request_.peft.method = "meft";
  request_.peft.meft.rank = 4;
  request_.peft.meft.factors = "rosa";
  request_.peft.rosa.rank = 4;
  request_.peft.rosa.every_steps = 6;
  request_.restore_best = false;
  expect_the_same_on_every_layout();
  const auto drawn_anew = run("1x1", {1, 1});
  EXPECT_TRUE(drawn_anew.trained.contains("encoder.3.attention.output.weight")) << "what an event leaves as the rest";
  request_.peft.rosa.every_steps = 0;
  request_.peft.rosa.every_epochs = 0;
  EXPECT_NE(run("drawn once", {1, 1}).losses, drawn_anew.losses);
}

TEST(MeftCuts, OfARunWithFrozenAndCachedBlocksAreAlike) {
  const TemporaryFolder folder;
  RunRequest request;
  request.model = write_tiny_model({.num_blocks = 4}, folder / "model");
  request.dataset = write_tiny_dataset({}, folder / "data.h5");
  request.peft.method = "meft";
  request.peft.meft.rank = 4;
  request.peft.meft.frozen_bottom = 1;
  request.peft.meft.cached_top = 1;
  request.peft.meft.merge = "concat";
  request.folder = folder / "1x1";
  const auto expected = run_training(request, {1, 1});
  for (const int stages : {2, 3, 4}) {
    request.folder = folder / std::to_string(stages);
    expect_same_bits(run_training(request, {stages, 1}), expected, std::to_string(stages) + " stages");
  }
}

TEST(MeftCuts, OfAnAnchoredInversionAreAlikeWhereStagesBeginAtAnchors) {
  const TemporaryFolder folder;
  RunRequest request;
  request.model = write_tiny_model({.num_blocks = 4}, folder / "model");
  request.dataset = write_tiny_dataset({}, folder / "data.h5");
  request.peft.method = "meft";
  request.peft.meft.rank = 4;
  request.peft.meft.inversion = "anchored";
  request.peft.meft.anchor_layers = 2;
  request.folder = folder / "1x1";
  const auto expected = run_training(request, {1, 1});
  request.folder = folder / "2x1";
  expect_same_bits(run_training(request, {2, 1}), expected, "2x1");
  request.folder = folder / "4x1";
  EXPECT_THROW(run_training(request, {4, 1}), ConfigError);
}

TEST(MeftSummary, HasTheLargestInversionErrorOfAllRanks) {
  const TemporaryFolder folder;
  RunRequest request;
  request.model = write_tiny_model({.num_blocks = 4}, folder / "model");
  request.dataset = write_tiny_dataset({}, folder / "data.h5");
  request.steps = 1;
  request.peft.method = "meft";
  request.peft.meft.rank = 4;
  request.folder = folder / "exact";
  EXPECT_EQ(run_training(request, {2, 1}).summary.at("inversion_error").get<double>(), 0);
  request.peft.meft.inversion = "anchored";
  request.peft.meft.anchor_layers = 2;
  request.peft.meft.error_limit = 1;
  for (const bool is_below : {true, false}) {  // the only stage that inverts blocks
    request.peft.meft.frozen_bottom = is_below ? 0 : 2;
    request.peft.meft.cached_top = is_below ? 2 : 0;
    request.folder = folder / (is_below ? "below" : "above");
    EXPECT_GT(run_training(request, {2, 1}).summary.at("inversion_error").get<double>(), 0) << is_below;
  }
  request.peft.method = "lora";
  request.folder = folder / "lora";
  EXPECT_FALSE(run_training(request, {1, 1}).summary.contains("inversion_error"));
}

}  // namespace
}  // namespace espalier::test
