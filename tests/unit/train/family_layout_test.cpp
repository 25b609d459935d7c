// SPDX-License-Identifier: Apache-2.0
// Promise 1 for the families beyond BERT: carries of two stacks, position biases that cross stages, tied tables,
// images.
#include <gtest/gtest.h>

#include <set>

#include "common/error.h"
#include "tiny_dataset.h"
#include "tiny_model.h"
#include "training_run.h"

namespace espalier::test {
namespace {

// Those that are tried with the other schedule and gradient strategy too: tied tables, carries of two stacks and of a
// side network, prompts, a running sum.
const std::set<std::pair<std::string, std::string>> kTriedWithGPipe = {
    {"t5", "full"}, {"t5", "lst"}, {"gpt2", "prompt"}, {"gpt2", "last"}};

class FamilyLayouts : public testing::TestWithParam<std::tuple<const char*, const char*>>, protected TrainingRuns {
 protected:
  FamilyLayouts() {
    const auto& [family, method] = GetParam();
    const bool is_visual = family == std::string("clip_t5");
    const bool has_encoder = is_visual || family == std::string("t5") || family == std::string("bart");
    // Cut in three, encoder, decoder and head of an encoder-decoder each have a place of its table.
    request_.model = write_tiny_model(
        {.family = family, .num_blocks = 3, .num_decoder_blocks = 2, .width = 16, .heads = 2, .ff = 24},
        folder_ / "model");
    const char* task = family == std::string("vit") ? "image_classification" : has_encoder ? "seq2seq" : "causal_lm";
    request_.dataset =
        write_tiny_dataset({.task = task, .num_rows = 240, .longest = 12, .is_visual = is_visual}, folder_ / "data.h5");
    request_.peft.method = method;
    request_.peft.lora.rank = 4;
    request_.peft.adapter.rank = 4;
    request_.peft.adapter.cross_attention = has_encoder;
    request_.peft.rosa.rank = 4;
    request_.peft.prompt.tokens = 4;
    request_.peft.rosa.every_steps = 6;
    if (family == std::string("gpt2")) request_.peft.rosa.targets = {"attention.query_key_value", "attention.output"};
    request_.drop_path = family == std::string("vit") ? 0.3 : 0;
    request_.peft.lst.reduction = 2;
    // One of them learns from the backbone's predictions too.
    request_.peft.lst.distill_weight = family == std::string("t5") && method == std::string("lst") ? 0.5 : 0;
  }
};

TEST_P(FamilyLayouts, GiveTheSameLossesAndWeightsBitForBit) {
  const auto& [family, method] = GetParam();
  expect_the_same_on_every_layout(/*tries_gpipe=*/kTriedWithGPipe.contains({family, method}));
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyLayouts,
                         testing::Combine(testing::Values("t5", "clip_t5", "bart", "opt", "gpt2", "llama", "vit"),
                                          testing::Values("full", "lst")),
                         [](const auto& tested) {
                           return std::string(std::get<0>(tested.param)) + "_" + std::get<1>(tested.param);
                         });

INSTANTIATE_TEST_SUITE_P(Baselines, FamilyLayouts,
                         testing::Values(std::tuple("t5", "lora"), std::tuple("llama", "lora"),
                                         std::tuple("t5", "adapter"), std::tuple("t5", "rosa"),
                                         std::tuple("gpt2", "rosa"), std::tuple("opt", "adapter"),
                                         std::tuple("bart", "bitfit"), std::tuple("vit", "bitfit"),
                                         std::tuple("t5", "prompt"), std::tuple("gpt2", "prompt")),
                         [](const auto& tested) {
                           return std::string(std::get<0>(tested.param)) + "_" + std::get<1>(tested.param);
                         });

INSTANTIATE_TEST_SUITE_P(LowRankAttention, FamilyLayouts,
                         testing::Combine(testing::Values("opt", "gpt2", "llama", "vit"), testing::Values("last")),
                         [](const auto& tested) {
                           return std::string(std::get<0>(tested.param)) + "_" + std::get<1>(tested.param);
                         });

TEST(LanguageModel, IsNotTrainedByAMethodThatFindsNothingToTrain) {
  const TemporaryFolder folder;
  RunRequest request;
  request.model = write_tiny_model({.family = "gpt2"}, folder / "model");
  request.dataset = write_tiny_dataset({.task = "causal_lm"}, folder / "data.h5");
  request.folder = folder / "run";
  request.peft.method = "probe";
  try {
    run_training(request, {1, 1});
    ADD_FAILURE() << "a probe without a head was trained";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("peft.method=probe"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace espalier::test
