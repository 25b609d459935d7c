// SPDX-License-Identifier: Apache-2.0
// N prompts, R rows (prompts or their beams), T tokens, V vocabulary
#include "train/generation.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <nlohmann/json.hpp>

#include "common/error.h"
#include "dist/agree.h"
#include "model/attention_cache.h"
#include "model/input_names.h"

namespace espalier::train {
namespace {

TokenIds ids_of(const at::Tensor& row) {
  const auto contiguous = row.contiguous();
  return {contiguous.const_data_ptr<std::int64_t>(), contiguous.const_data_ptr<std::int64_t>() + contiguous.numel()};
}

/// The rows with their padding moved to the left, where a causal model goes on from their ends.
model::NamedTensors pad_left(const model::NamedTensors& prompts, std::int64_t pad) {
  const auto& ids = prompts.at("input_ids");
  const auto& mask = prompts.at("attention_mask");
  const auto length = mask.sum(1).max().item<std::int64_t>();
  auto left = at::full({ids.size(0), length}, pad, at::kLong);
  auto left_mask = at::zeros({ids.size(0), length}, at::kLong);
  for (std::int64_t row = 0; row < ids.size(0); ++row) {
    const auto kept = ids[row].masked_select(mask[row].ne(0));
    left[row].slice(0, length - kept.numel()).copy_(kept);
    left_mask[row].slice(0, length - kept.numel()).fill_(1);
  }
  return {{"input_ids", left}, {"attention_mask", left_mask}};
}

/// Positions of the last `count` tokens: attended ones count from 0.
at::Tensor positions_of(const at::Tensor& mask, std::int64_t count) {
  return mask.cumsum(1).sub_(1).clamp_min_(0).slice(1, mask.size(1) - count);
}

/// What the stages read at every step, kept in step with the search.
class Prompt {
 public:
  Prompt(const model::Backbone& backbone, const model::NamedTensors& prompts)
      : is_encoder_decoder_(backbone.is_encoder_decoder()) {
    inputs_ = is_encoder_decoder_ ? prompts : pad_left(prompts, backbone.pad_token_id);
    const auto rows = inputs_.at("input_ids").size(0);
    if (is_encoder_decoder_) {
      inputs_["decoder_input_ids"] = at::full({rows, 1}, backbone.decoder_start_token_id, at::kLong);
    } else {
      inputs_["position_ids"] = positions_of(inputs_.at("attention_mask"), inputs_.at("input_ids").size(1));
    }
  }
  [[nodiscard]] const model::NamedTensors& inputs() const { return inputs_; }
  /// What counts as text so far, for the rule on repeated n-grams.
  [[nodiscard]] std::vector<TokenIds> texts() const {
    std::vector<TokenIds> texts;
    const auto& ids = inputs_.at(is_encoder_decoder_ ? "decoder_input_ids" : "input_ids");
    for (std::int64_t row = 0; row < ids.size(0); ++row) texts.push_back(ids_of(ids[row]));
    return texts;
  }
  /// Rows go on from others, by one token each.
  void go_on(const at::Tensor& sources, const at::Tensor& tokens) {
    auto& mask = inputs_.at("attention_mask");
    mask = mask.index_select(0, sources);
    if (is_encoder_decoder_) {
      inputs_["input_ids"] = at::empty({tokens.numel(), 0}, at::kLong);  // it was read once
      if (const auto features = inputs_.find("vis_feats"); features != inputs_.end()) {
        const auto num_visual = features->second.size(1);
        for (const auto* name : model::kVisualInputs) inputs_.erase(name);
        inputs_["vis_feats"] = at::empty({tokens.numel(), num_visual, 0}, at::kFloat);
      }
      inputs_["decoder_input_ids"] = tokens.unsqueeze(1);
      return;
    }
    mask = at::cat({mask, at::ones({tokens.numel(), 1}, at::kLong)}, 1);
    inputs_["input_ids"] = tokens.unsqueeze(1);
    inputs_["position_ids"] = positions_of(mask, 1);
  }

 private:
  bool is_encoder_decoder_;
  model::NamedTensors inputs_;
};

/// `num_prompts`: trained vectors before the words of a prompt.
void check(const model::Backbone& backbone, std::int64_t num_prompts, const SearchConfig& config,
           const Prompt& prompt) {
  if (!backbone.head().is_language_model) {
    throw ConfigError(fmt::format("{}: expected a model that generates text (T5, BART, OPT, GPT-2, Llama), found {}",
                                  backbone.folder.string(), backbone.family->model_type()));
  }
  const auto prompt_tokens = backbone.is_encoder_decoder() ? 1 : num_prompts + prompt.inputs().at("input_ids").size(1);
  if (backbone.max_positions > 0 && prompt_tokens + config.max_new_tokens > backbone.max_positions) {
    throw ConfigError(
        fmt::format("generate.max_new_tokens: expected at most {} (positions of the model less the {} of the longest "
                    "prompt), found {}",
                    backbone.max_positions - prompt_tokens, prompt_tokens, config.max_new_tokens));
  }
}

}  // namespace

std::vector<TokenIds> generate(Worker& worker, const SearchConfig& config, const model::NamedTensors& prompts) {
  const at::NoGradGuard no_grad;
  const auto& backbone = worker.backbone();
  auto& stages = *worker.mesh().stage_control;
  const int last = worker.place().num_stages - 1;
  const bool is_last = worker.place().is_last_stage();

  Prompt prompt(backbone, prompts);
  check(backbone, worker.slice().num_prompts(), config, prompt);
  const SearchTokens special{backbone.eos_token_ids, backbone.pad_token_id, backbone.forced_first_token_id,
                             backbone.forced_last_token_id};
  TokenSearch search(config, prompt.texts(), special);
  const auto num_prompts = prompt.inputs().at("input_ids").size(0);
  model::AttentionCache cache;
  for (;;) {
    auto micro_batch = make_micro_batch(backbone, 0, prompt.inputs());
    micro_batch.shape.cached_tokens = cache.num_tokens();
    const auto outgoing = worker.executor().generate_step(micro_batch, cache);
    // [is done, number of rows, tokens, sources]
    auto news = at::zeros({2 + 2 * num_prompts * config.num_beams}, at::kLong);
    if (is_last) {
      const auto next = search.advance(outgoing.at("logits").select(1, -1).to(at::kFloat).log_softmax(-1));
      const auto rows = static_cast<std::int64_t>(next.tokens.size());
      news[0] = search.is_done() ? 1 : 0;
      news[1] = rows;
      news.narrow(0, 2, rows).copy_(at::tensor(next.tokens, at::kLong));
      news.narrow(0, 2 + rows, rows).copy_(at::tensor(next.sources, at::kLong));
    }
    stages.broadcast(news, last).wait();
    if (news[0].item<std::int64_t>() != 0) {
      break;
    }
    const auto rows = news[1].item<std::int64_t>();
    const auto sources = news.narrow(0, 2 + rows, rows);
    cache.reorder(sources);
    prompt.go_on(sources, news.narrow(0, 2, rows));
  }
  const nlohmann::json results = is_last ? search.results() : std::vector<TokenIds>();
  return nlohmann::json::parse(dist::broadcast_text(stages, results.dump(), last)).get<std::vector<TokenIds>>();
}

}  // namespace espalier::train
