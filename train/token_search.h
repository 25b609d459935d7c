// SPDX-License-Identifier: Apache-2.0
// Which tokens to generate next: greedy and beam search over log-probabilities that somebody else computes. Pure host
// code; it knows neither model nor ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "common/options.h"

namespace espalier::train {

struct SearchConfig {
  std::int64_t num_beams = 1;        ///< 1: greedy
  std::int64_t max_new_tokens = 64;  ///< the end token included
  std::int64_t min_new_tokens = 0;   ///< before which there is no end token
  double length_penalty = 1;         ///< exponent of the length that divides a finished beam's log-probability
  std::int64_t no_repeat_ngram = 0;  ///< tokens of a run that must not come again; 0: no such rule
  bool early_stopping = false;       ///< a row ends with as many finished texts as beams
};
/// Keys "generate.*".
void describe(OptionTable& table, SearchConfig& config);

using TokenIds = std::vector<std::int64_t>;

/// Tokens that mean something to the search.
struct SearchTokens {
  std::vector<std::int64_t> eos = {};  ///< each ends a text
  std::int64_t pad = 0;                ///< fills up ended ones
  /// The first and the last possible token of a text must be these; -1: any.
  std::int64_t forced_first = -1, forced_last = -1;
};

/// One batch of prompts on its way. The beam search is the one of `transformers` 5 (generation/utils.py): twice as many
/// candidates as beams, finished ones scored by log-probability / length ^ length_penalty, a row that can no longer
/// improve is closed. N prompts, K beams, V vocabulary
class TokenSearch {
 public:
  /// `prompts`: what stands before the generated tokens, for the rule on repeated n-grams. Requires: at least one.
  TokenSearch(const SearchConfig& config, std::vector<TokenIds> prompts, SearchTokens special);

  /// Of the rows to compute next: the token each goes on with, and the row of the last scores it comes from.
  struct Next {
    std::vector<std::int64_t> tokens, sources;
  };
  /// Takes log-probabilities of the next token: [N, V] fp32 the first time, then one row for each of Next.
  /// Throws: InternalError for another number of rows.
  Next advance(const at::Tensor& log_probabilities);
  [[nodiscard]] bool is_done() const { return is_done_; }
  /// The best text of each prompt, without prompt and without the end token and what follows it.
  [[nodiscard]] std::vector<TokenIds> results() const;

 private:
  struct Beam {
    TokenIds tokens;
    double score = 0;
  };
  struct Row {
    TokenIds prompt;
    std::vector<Beam> running, finished;
    bool can_improve = true;
  };
  struct Candidate {
    double score;
    std::size_t beam;
    std::int64_t token;
  };

  /// Sets what the rules do not allow behind `tokens` to -infinity.
  void forbid(const Row& row, const TokenIds& tokens, float* scores, std::int64_t vocabulary) const;
  void advance_greedy(std::size_t index, float* scores, std::int64_t vocabulary, Next& next);
  void advance_beams(std::size_t index, float* scores, std::size_t first_row, std::int64_t vocabulary, Next& next);
  [[nodiscard]] bool is_end(std::int64_t token) const;
  /// Whether a text of so many new tokens must end there.
  [[nodiscard]] bool is_full(std::size_t num_new) const;

  SearchConfig config_;
  SearchTokens special_;
  std::vector<Row> rows_;
  std::size_t num_steps_ = 0;
  bool is_done_ = false;
};

}  // namespace espalier::train
