// SPDX-License-Identifier: Apache-2.0
// Prompt tuning equals that of `peft`, whose numbers tools/make_golden_prompt.py wrote, at every cut; and what prompts
// do to rows of every kind.
#include "peft/prompt.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "common/error.h"
#include "stages.h"

namespace espalier::peft {
namespace {

using ::testing::HasSubstr;

MethodConfig prompt_config(std::int64_t tokens, const char* initial = "words") {
  return {.method = "prompt", .prompt = {.tokens = tokens, .initial = initial}};
}

std::filesystem::path golden_folder(const std::string& name) {
  return std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden" / name;
}

TinyModel open_golden(const std::string& family) {
  return {model::read_backbone(golden_folder(family + "_1"), {}),
          model::open_model_folder(golden_folder(family + "_1"))};
}

/// The inputs of a golden folder and its labels, without the first of a causal model's rows.
model::NamedTensors golden_batch(const std::string& family, const TinyModel& tiny) {
  const auto stored = model::open_safetensors(golden_folder(family + "_1") / "golden.safetensors");
  model::NamedTensors batch;
  for (const char* name : {"input_ids", "attention_mask", "token_type_ids", "labels"}) {
    if (stored->contains(name)) batch[name] = stored->get(name).clone();
  }
  if (tiny.backbone.head().is_language_model && !tiny.backbone.is_encoder_decoder()) {
    batch.at("labels").select(1, 0).fill_(-100);
  }
  model::complete_decoder_inputs(tiny.backbone, batch);
  return batch;
}

class PromptGolden : public testing::TestWithParam<const char*> {};

TEST_P(PromptGolden, LogitsLossAndGradientAreThoseOfPeftAtEveryCut) {
  const std::string family = GetParam();
  const TinyModel tiny = open_golden(family);
  const auto golden = model::open_safetensors(golden_folder("prompt_1") / "golden.safetensors");
  const auto batch = golden_batch(family, tiny);
  for (int num_stages = 1; num_stages <= tiny.backbone.num_blocks(); ++num_stages) {
    SCOPED_TRACE("stages: " + std::to_string(num_stages));
    Stages stages(tiny, prompt_config(5), num_stages);
    const std::string name = "embedding.prompts";
    stages.trained(name).detach().copy_(golden->get(family + ".prompts"));
    double loss = 0;
    const Step found = stages.step(batch, /*context=*/{}, gradient_of_loss(tiny.backbone, batch.at("labels"), &loss));
    EXPECT_LT(relative_error(found.logits, golden->get(family + ".logits")), 1e-5);
    EXPECT_NEAR(loss, golden->get(family + ".loss").item<double>(), 1e-5);
    const at::Tensor expected = golden->get(family + ".gradient");
    // The golden numbers are fp64. T5 does not scale its scores: there peft itself differs by 3.6e-5 in fp32.
    EXPECT_LT(relative_error(found.gradients.at(name), expected), family == "t5" ? 5e-5 : 1e-5);
    EXPECT_GT(expected.abs().max().item<double>(), 1e-3) << "the gradient would say nothing";
    EXPECT_LT(relative_error(stages.evaluate(batch), found.logits), 1e-6) << "evaluation reads the prompts too";
  }
}

INSTANTIATE_TEST_SUITE_P(Families, PromptGolden,
                         testing::Values("bert", "roberta", "t5", "bart", "gpt2", "opt", "llama"),
                         [](const auto& family) { return std::string(family.param); });

TEST(PromptMethod, TrainsAVectorOfTheWordsWidthForEachPrompt) {
  const model::Backbone tiny = plan_tiny({});
  EXPECT_EQ(count_prompt({.tokens = 7}, tiny), 7 * 16);
  EXPECT_EQ(count_trained(prompt_config(7), tiny).method, 7 * 16);
  EXPECT_EQ(count_trained(prompt_config(7), tiny).head, count_trained({.method = "probe"}, tiny).head);
}

/// make_batch() with the words that `prompts` [N, D] start from in front of every row.
model::NamedTensors make_longer_batch(const TinyModel& tiny, const at::Tensor& prompts) {
  const at::Tensor table = tiny.weights->get("bert.embeddings.word_embeddings.weight");
  const at::Tensor is_word = prompts.unsqueeze(1).eq(table.unsqueeze(0)).all(-1);  // [N, vocabulary]
  EXPECT_TRUE(is_word.any(1).all().item<bool>()) << "each starts from a row of the table";
  auto batch = make_batch();
  const std::int64_t rows = batch.at("input_ids").size(0), count = prompts.size(0);
  const at::Tensor words = is_word.to(at::kLong).argmax(1).unsqueeze(0).expand({rows, count});
  batch["input_ids"] = at::cat({words, batch.at("input_ids")}, 1);
  batch["attention_mask"] = at::cat({at::ones({rows, count}, at::kLong), batch.at("attention_mask")}, 1);
  return batch;
}

TEST(PromptMethod, IsWhatWordsInTheSamePlaceWouldBe) {
  // Prompts that start from words, against rows that begin with those words: positions, types and mask.
  const TinyModel tiny = make_tiny({});
  for (const int num_stages : {1, 3}) {
    Stages stages(tiny, prompt_config(3), num_stages);
    const at::Tensor found = stages.evaluate(make_batch());
    const auto longer = make_longer_batch(tiny, stages.trained("embedding.prompts").detach());
    EXPECT_TRUE(at::equal(found, run_bare(tiny, longer)));
    EXPECT_FALSE(at::allclose(found, run_bare(tiny, make_batch()), 0, 1e-3));
  }
}

TEST(PromptMethod, GivesStatesAndLogitsOfTheWordsAlone) {
  for (const char* family : {"gpt2", "bert"}) {
    const TinyModel tiny = open_golden(family);
    const auto batch = golden_batch(family, tiny);
    const Stages stages(tiny, prompt_config(5), 1);
    const auto result =
        stages.methods.front()->forward({}, stages.slices.front()->prepare(batch), {}, /*keeps_pass=*/false);
    EXPECT_EQ(result.outgoing.at("hidden").sizes().slice(0, 2), batch.at("input_ids").sizes()) << family;
  }
}

TEST(PromptMethod, PoolsOverPromptsAndWordsAlike) {
  TinyConfig config;
  config.pooling = "mean";
  const TinyModel tiny = make_tiny(config);
  Stages stages(tiny, prompt_config(2), 2);
  auto batch = make_batch();
  const at::Tensor pooled = stages.evaluate(batch);
  const auto longer = make_longer_batch(tiny, stages.trained("embedding.prompts").detach());
  std::vector<at::Tensor> hidden;
  EXPECT_TRUE(at::equal(pooled, run_bare(tiny, longer, {}, &hidden)));
  // By hand: the mean of all that is attended, of which the two prompts are a part.
  const at::Tensor is_attended = longer.at("attention_mask").unsqueeze(-1);  // [B, N + T, 1]
  const at::Tensor mean = (hidden.back() * is_attended).sum(1) / is_attended.sum(1);
  const at::Tensor expected =
      at::linear(mean, stages.trained("head.classifier.weight"), stages.trained("head.classifier.bias"));
  EXPECT_TRUE(at::allclose(pooled, expected, 0, 1e-5));
  // Padding further changes nothing: prompts are attended, padding is not.
  for (auto& [name, value] : batch) value = at::constant_pad_nd(value, {0, 3});
  EXPECT_TRUE(at::allclose(stages.evaluate(batch), pooled, 0, 1e-5));
}

TEST(PromptMethod, StartsFromANormalDistributionOnRequestAndFromTheSameBitsOnEveryCut) {
  const TinyModel tiny = make_tiny({.width = 64, .num_positions = 64});
  const at::Tensor normal = Stages(tiny, prompt_config(40, "normal"), 1).trained("embedding.prompts").detach();
  EXPECT_NEAR(normal.std().item<double>(), 0.02, 0.001);
  for (const char* initial : {"words", "normal"}) {
    const auto start = [&](int num_stages) {
      return Stages(tiny, prompt_config(40, initial), num_stages).trained("embedding.prompts").detach();
    };
    EXPECT_TRUE(at::equal(start(1), start(4))) << initial;
  }
}

TEST(PromptMethod, StartsFromTheWordsThatAreNamed) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = prompt_config(5, "ids");
  config.prompt.initial_ids = {7, 3};
  const at::Tensor table = tiny.weights->get("bert.embeddings.word_embeddings.weight");
  const at::Tensor expected = at::stack({table[7], table[3], table[7], table[3], table[7]});
  EXPECT_TRUE(at::equal(Stages(tiny, config, 2).trained("embedding.prompts"), expected));

  config.prompt.initial_ids = {40};
  EXPECT_THAT(config_error([&] { Stages(tiny, config, 1); }), HasSubstr("ids of the vocabulary, 0..39, found 40"));
  config.prompt.initial_ids = {};
  EXPECT_THAT(config_error([&] { Stages(tiny, config, 1); }), HasSubstr("expected ids with peft.prompt.initial=ids"));
  config.prompt = {.tokens = 5, .initial_ids = {7}};
  EXPECT_THAT(config_error([&] { Stages(tiny, config, 1); }), HasSubstr("found 1 of them with words"));
}

TEST(PromptMethod, RefusesWhatHasNoWordsAndWhatHasNoPositionsLeft) {
  const TinyModel tiny = make_tiny({}), vit = open_golden("vit");
  EXPECT_THAT(config_error([&] { Stages(vit, prompt_config(2), 1); }),
              HasSubstr("expected a backbone that reads words"));
  EXPECT_THAT(config_error([&] { static_cast<void>(count_trained(prompt_config(2), vit.backbone)); }),
              HasSubstr("vit"));
  EXPECT_THAT(config_error([&] { Stages(tiny, prompt_config(16), 1); }), HasSubstr("less than the 16 positions"));
  Stages stages(tiny, prompt_config(9), 1);
  EXPECT_THAT(config_error([&] { static_cast<void>(stages.evaluate(make_batch())); }),
              HasSubstr("at most 7 tokens a row (positions of the model less 9 prompts)"));
}

}  // namespace
}  // namespace espalier::peft
