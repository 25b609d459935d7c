// SPDX-License-Identifier: Apache-2.0
// N prompts, D width of a word
#include "peft/prompt.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <nlohmann/json.hpp>

#include "common/error.h"
#include "common/random.h"
#include "model/initial.h"
#include "peft/trained_set.h"

namespace espalier::peft {
namespace {

// Of the normal start: what most backbones' word embeddings began with.
constexpr double kDeviation = 0.02;

const model::EmbeddingSpec& words_of(const PromptConfig& config, const model::Backbone& backbone) {
  const auto& embedding = backbone.chain.front().embedding;
  if (!embedding) {
    throw ConfigError(fmt::format(
        "peft.method=prompt: expected a backbone that reads words, found {}, which reads images; take another method",
        backbone.family->model_type()));
  }
  if (backbone.max_positions > 0 && config.tokens >= backbone.max_positions) {
    throw ConfigError(fmt::format(
        "peft.prompt.tokens: expected less than the {} positions of the model, so that words fit behind, found {}",
        backbone.max_positions, config.tokens));
  }
  if ((config.initial == "ids") != !config.initial_ids.empty()) {
    throw ConfigError(
        fmt::format("peft.prompt.initial_ids: expected ids with peft.prompt.initial=ids and none without, found {} of "
                    "them with {}",
                    config.initial_ids.size(), config.initial));
  }
  for (const std::int64_t id : config.initial_ids) {
    if (id < 0 || id >= embedding->vocab_size) {
      throw ConfigError(fmt::format("peft.prompt.initial_ids: expected ids of the vocabulary, 0..{}, found {}",
                                    embedding->vocab_size - 1, id));
    }
  }
  return *embedding;
}

/// D; where words are projected (OPT), prompts are too.
std::int64_t width_of(const model::EmbeddingSpec& words) {
  return words.token_width > 0 ? words.token_width : words.width;
}

/// [N, D] fp32: random words as the model reads them, or random numbers.
at::Tensor draw_start(const PromptConfig& config, const model::Backbone& backbone, const model::WeightSource& weights,
                      std::uint64_t seed, const std::string& name) {
  const model::EmbeddingSpec& words = words_of(config, backbone);
  if (config.initial == "normal") {
    return model::normal_by_name({config.tokens, width_of(words)}, kDeviation, seed, name);
  }
  PhiloxSequence random(derive_key(seed, RandomDomain::kInitial, name));
  at::Tensor ids = at::empty({config.tokens}, at::kLong);
  const auto given = static_cast<std::int64_t>(config.initial_ids.size());
  for (std::int64_t i = 0; i < config.tokens; ++i) {
    ids[i] = given > 0 ? config.initial_ids[static_cast<std::size_t>(i % given)]
                       : static_cast<std::int64_t>(random.next_below(static_cast<std::uint64_t>(words.vocab_size)));
  }
  const at::Tensor table = stored_weight(backbone, backbone.chain.front(), "token.weight", weights);
  return table.index_select(0, ids).to(at::kFloat) * words.token_scale;
}

}  // namespace

void describe(OptionTable& table, PromptConfig& config) {
  table.add("peft.prompt.tokens", config.tokens)
      .at_least(1)
      .help("Trained vectors in front of every row. They take positions, time and memory as words do.");
  table.add("peft.prompt.initial", config.initial)
      .choices({"words", "normal", "ids"})
      .help(
          "What they start from. words: embeddings of random words of the vocabulary. normal: N(0, 0.02^2). ids: those "
          "of peft.prompt.initial_ids.");
  table.add("peft.prompt.initial_ids", config.initial_ids)
      .help(
          "Ids of the words that the prompts start from, over and over until there are enough: of a sentence that says "
          "the task, or of the labels.");
}

std::int64_t count_prompt(const PromptConfig& config, const model::Backbone& backbone) {
  return config.tokens * width_of(words_of(config, backbone));
}

PromptMethod::PromptMethod(const PromptConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
                           std::uint64_t seed)
    : ChainMethod(slice, {.first_trained_layer = 0}), config_(config) {
  static_cast<void>(words_of(config, slice.backbone()));
  at::Tensor prompts;
  if (slice.range().first == 0) {
    const std::string name = slice.backbone().chain.front().name + ".prompts";
    trained().push_back(
        make_trained(name, draw_start(config, slice.backbone(), weights, seed, name), slice.options().device));
    prompts = trained().back().value;
  }
  slice.set_prompts(config.tokens, prompts);
  for (const auto& layer : slice.layers()) {
    train_task_weights(slice, *layer, weights, trained());
  }
}

nlohmann::json PromptMethod::describe_export() const {
  return {{"tokens", config_.tokens}, {"initial", config_.initial}};
}

}  // namespace espalier::peft
