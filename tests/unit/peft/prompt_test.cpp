// SPDX-License-Identifier: Apache-2.0
// Prompt tuning equals that of `peft`, whose numbers tools/make_golden_prompt.py wrote, at every cut; and what prompts
// do to rows of every kind.
#include "peft/prompt.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <filesystem>

#include "common/error.h"
#include "model/loss.h"
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

at::Tensor loss_of(const model::Backbone& backbone, const at::Tensor& logits, const at::Tensor& labels) {
  if (!backbone.head().is_language_model) return model::classification_loss(logits, labels, labels.size(0));
  const bool is_shifted = !backbone.is_encoder_decoder();
  return model::token_loss(logits, labels, is_shifted, model::count_targets(labels, is_shifted));
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
    const Step found = stages.step(batch, /*context=*/{}, [&](const at::Tensor& logits) {
      const at::AutoGradMode with_gradient(true);
      const auto leaf = logits.detach().requires_grad_();
      const auto value = loss_of(tiny.backbone, leaf, batch.at("labels"));
      loss = value.item<double>();
      return torch::autograd::grad({value}, {leaf}).front();
    });
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

TEST(PromptMethod, IsWhatWordsInTheSamePlaceWouldBe) {
  // Prompts that start from words, against rows that begin with those words: positions, types, mask and pooling.
  const TinyModel tiny = make_tiny({});
  const at::Tensor table = tiny.weights->get("bert.embeddings.word_embeddings.weight");
  const auto batch = make_batch();
  for (const int num_stages : {1, 3}) {
    Stages stages(tiny, prompt_config(3), num_stages);
    const at::Tensor prompts = stages.trained("embedding.prompts").detach();
    const at::Tensor is_word = prompts.unsqueeze(1).eq(table.unsqueeze(0)).all(-1);  // [3, vocabulary]
    EXPECT_TRUE(at::equal(is_word.any(1), at::ones({3}, at::kBool))) << "each starts from a row of the table";
    const at::Tensor words = is_word.to(at::kLong).argmax(1).unsqueeze(0).expand({3, 3});
    model::NamedTensors longer = batch;
    longer["input_ids"] = at::cat({words, batch.at("input_ids")}, 1);
    longer["attention_mask"] = at::cat({at::ones({3, 3}, at::kLong), batch.at("attention_mask")}, 1);
    if (batch.contains("token_type_ids")) {
      longer["token_type_ids"] = at::cat({at::zeros({3, 3}, at::kLong), batch.at("token_type_ids")}, 1);
    }
    EXPECT_TRUE(at::equal(stages.evaluate(batch), run_bare(tiny, longer)));
    EXPECT_FALSE(at::allclose(stages.evaluate(batch), run_bare(tiny, batch), 0, 1e-3));
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
  const at::Tensor padded = stages.evaluate(batch);
  // Padding further changes nothing: prompts are attended, padding is not.
  for (auto& [name, value] : batch) value = at::constant_pad_nd(value, {0, 3});
  EXPECT_TRUE(at::allclose(stages.evaluate(batch), padded, 0, 1e-5));
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
