// SPDX-License-Identifier: Apache-2.0
// Prompt tuning (Lester, Al-Rfou, Constant, EMNLP 2021, section 2): a row of words w becomes [p_1 ... p_N, E(w_1) ...
// E(w_T)], N trained vectors in front of the word embeddings of the first stack, as `peft` has them. Every layer above
// reads N + T tokens; what comes out is of the words again. docs/methods/prompt.md.
#pragma once

#include "common/options.h"
#include "peft/chain_method.h"

namespace espalier::peft {

/// Keys "peft.prompt.*".
void describe(OptionTable& table, PromptConfig& config);

/// N times the width of a word. Throws: ConfigError for a backbone that reads no words, for prompts that leave its
/// words no position, and for initial_ids outside its vocabulary, missing, or without initial=ids.
std::int64_t count_prompt(const PromptConfig& config, const model::Backbone& backbone);

class PromptMethod final : public ChainMethod {
 public:
  /// Gives `slice`, which outlives the method, its prompts (StageSlice::set_prompts()), drawn where the slice has the
  /// words; the task's weights train in their slots. Throws: ConfigError as count_prompt().
  PromptMethod(const PromptConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
               std::uint64_t seed);
  [[nodiscard]] std::string_view name() const override { return "prompt"; }
  [[nodiscard]] Route route() const override { return Route::kThrough; }
  [[nodiscard]] nlohmann::json describe_export() const override;

 private:
  PromptConfig config_;
};

}  // namespace espalier::peft
