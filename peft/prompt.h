// SPDX-License-Identifier: Apache-2.0
// Prompt tuning (Lester, Al-Rfou, Constant, EMNLP 2021): N trained vectors in front of the word embeddings of the first
// stack, as `peft` has them. Every layer above reads longer rows; what comes out is of the words again.
// docs/methods/prompt.md.
#pragma once

#include "common/options.h"
#include "peft/chain_method.h"

namespace espalier::peft {

/// Keys "peft.prompt.*".
void describe(OptionTable& table, PromptConfig& config);

/// N times the width of a word. Throws: ConfigError for a backbone that reads no words, and for more prompts than it
/// has positions.
std::int64_t count_prompt(const PromptConfig& config, const model::Backbone& backbone);

class PromptMethod final : public ChainMethod {
 public:
  PromptMethod(const PromptConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
               std::uint64_t seed);
  [[nodiscard]] std::string_view name() const override { return "prompt"; }
  [[nodiscard]] Route route() const override { return Route::kThrough; }
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> describe_export() const override;

 private:
  PromptConfig config_;
};

}  // namespace espalier::peft
