// SPDX-License-Identifier: Apache-2.0
#include "train/token_search.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "common/check.h"

namespace espalier::train {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

}  // namespace

void describe(OptionTable& table, SearchConfig& config) {
  table.add("generate.num_beams", config.num_beams)
      .at_least(1)
      .unit("beams")
      .help("1: greedy, the most likely token each time. More: beam search over that many texts a row.");
  table.add("generate.max_new_tokens", config.max_new_tokens)
      .at_least(1)
      .unit("tokens")
      .help("Longest generated text, end token included.");
  table.add("generate.min_new_tokens", config.min_new_tokens)
      .at_least(0)
      .unit("tokens")
      .help("No end token before so many tokens.");
  table.add("generate.length_penalty", config.length_penalty)
      .help("Beam search ranks ended texts by log-probability / length ^ this: above 0 favours longer texts.");
  table.add("generate.no_repeat_ngram", config.no_repeat_ngram)
      .at_least(0)
      .unit("tokens")
      .help("No run of so many tokens stands twice in prompt and text. 0: no such rule.");
  table.add("generate.early_stopping", config.early_stopping)
      .help("Beam search ends a row as soon as it has as many ended texts as beams, not when none can improve.");
}

TokenSearch::TokenSearch(const SearchConfig& config, std::vector<TokenIds> prompts, SearchTokens special)
    : config_(config), special_(std::move(special)) {
  ESPALIER_CHECK(!prompts.empty());
  for (auto& prompt : prompts) {
    rows_.push_back({.prompt = std::move(prompt), .running = {Beam{}}, .finished = {}});
  }
}

TokenSearch::Next TokenSearch::advance(const at::Tensor& log_probabilities) {
  auto scores = log_probabilities.to(at::kFloat).cpu().contiguous().clone();
  const auto vocabulary = scores.size(1);
  auto* data = scores.mutable_data_ptr<float>();
  Next next;
  std::size_t first_row = 0;
  for (std::size_t index = 0; index < rows_.size(); ++index) {
    const auto num_rows = num_steps_ == 0 ? 1 : rows_[index].running.size();
    float* own = data + static_cast<std::int64_t>(first_row) * vocabulary;
    if (config_.num_beams == 1) {
      advance_greedy(index, own, vocabulary, next);
    } else {
      advance_beams(index, own, first_row, vocabulary, next);
    }
    first_row += num_rows;
  }
  ESPALIER_CHECK(static_cast<std::int64_t>(first_row) == scores.size(0), "{} rows of scores for {}", scores.size(0),
                 first_row);
  ++num_steps_;
  is_done_ =
      is_full(num_steps_) || std::none_of(rows_.begin(), rows_.end(), [](const Row& row) { return row.can_improve; });
  return next;
}

void TokenSearch::forbid(const Row& row, const TokenIds& tokens, float* scores, std::int64_t vocabulary) const {
  if (static_cast<std::int64_t>(tokens.size()) < config_.min_new_tokens) {
    for (const auto eos : special_.eos) {
      if (eos < vocabulary) scores[eos] = kForbidden;
    }
  }
  const bool is_last = is_full(tokens.size() + 1);
  const auto forced = tokens.empty() && special_.forced_first >= 0 ? special_.forced_first
                      : is_last                                    ? special_.forced_last
                                                                   : -1;
  if (forced >= 0) {
    std::fill_n(scores, vocabulary, kForbidden);
    scores[forced] = 0;
    return;
  }
  const auto n = static_cast<std::size_t>(config_.no_repeat_ngram);
  auto text = row.prompt;
  text.insert(text.end(), tokens.begin(), tokens.end());
  if (n == 0 || text.size() + 1 < n) return;
  const auto last = text.end() - static_cast<std::ptrdiff_t>(n - 1);
  for (std::size_t i = 0; i + n <= text.size(); ++i) {
    const auto begin = text.begin() + static_cast<std::ptrdiff_t>(i);
    if (std::equal(last, text.end(), begin)) scores[text[i + n - 1]] = kForbidden;
  }
}

void TokenSearch::advance_greedy(std::size_t index, float* scores, std::int64_t vocabulary, Next& next) {
  Row& row = rows_[index];
  Beam& beam = row.running.front();
  auto token = special_.pad;
  if (row.can_improve) {
    forbid(row, beam.tokens, scores, vocabulary);
    token = std::max_element(scores, scores + vocabulary) - scores;
    beam.tokens.push_back(token);
    row.can_improve = !is_end(token);
  }
  next.tokens.push_back(token);
  next.sources.push_back(static_cast<std::int64_t>(index));
}

void TokenSearch::advance_beams(std::size_t index, float* scores, std::size_t first_row, std::int64_t vocabulary,
                                Next& next) {
  Row& row = rows_[index];
  const auto num_beams = static_cast<std::size_t>(config_.num_beams);
  const auto num_candidates = std::max<std::size_t>(2, 1 + special_.eos.size()) * num_beams;
  std::vector<Candidate> candidates;
  for (std::size_t beam = 0; beam < row.running.size(); ++beam) {
    float* own = scores + static_cast<std::int64_t>(beam) * vocabulary;
    forbid(row, row.running[beam].tokens, own, vocabulary);
    for (std::int64_t token = 0; token < vocabulary; ++token) {
      candidates.push_back({row.running[beam].score + static_cast<double>(own[token]), beam, token});
    }
  }
  const auto kept = std::min(num_candidates, candidates.size());
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(kept), candidates.end(),
                    [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
  candidates.resize(kept);

  std::vector<Beam> running;
  const auto length = static_cast<double>(num_steps_ + 1);
  const bool is_closed = !row.can_improve || (config_.early_stopping && row.finished.size() == num_beams);
  for (std::size_t rank = 0; rank < candidates.size(); ++rank) {
    const auto& candidate = candidates[rank];
    auto tokens = row.running[candidate.beam].tokens;
    tokens.push_back(candidate.token);
    if (is_end(candidate.token) || is_full(tokens.size())) {
      // Those behind the first K are there to replace ended ones, not to end.
      if (rank < num_beams && !is_closed) {
        row.finished.push_back({std::move(tokens), candidate.score / std::pow(length, config_.length_penalty)});
      }
    } else if (running.size() < num_beams) {
      next.tokens.push_back(candidate.token);
      next.sources.push_back(static_cast<std::int64_t>(first_row + candidate.beam));
      running.push_back({std::move(tokens), candidate.score});
    }
  }
  std::stable_sort(row.finished.begin(), row.finished.end(),
                   [](const Beam& a, const Beam& b) { return a.score > b.score; });
  if (row.finished.size() > num_beams) row.finished.resize(num_beams);
  row.running = std::move(running);

  const bool has_all = row.finished.size() == num_beams;
  if (row.running.empty() || (has_all && config_.early_stopping)) {
    row.can_improve = false;
  } else if (has_all) {
    const double best = row.running.front().score / std::pow(length, config_.length_penalty);
    row.can_improve = row.can_improve && best > row.finished.back().score;
  }
}

bool TokenSearch::is_end(std::int64_t token) const {
  return std::find(special_.eos.begin(), special_.eos.end(), token) != special_.eos.end();
}

bool TokenSearch::is_full(std::size_t num_new) const {
  return static_cast<std::int64_t>(num_new) >= config_.max_new_tokens;
}

std::vector<TokenIds> TokenSearch::results() const {
  std::vector<TokenIds> texts;
  for (const Row& row : rows_) {
    const auto& best = row.finished.empty() ? row.running.front() : row.finished.front();
    auto tokens = best.tokens;
    tokens.erase(std::find_if(tokens.begin(), tokens.end(), [this](std::int64_t token) { return is_end(token); }),
                 tokens.end());
    texts.push_back(std::move(tokens));
  }
  return texts;
}

}  // namespace espalier::train
