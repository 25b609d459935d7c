// SPDX-License-Identifier: Apache-2.0
// Splits whose targets are tokens: texts to write (seq2seq), perhaps about images, texts to go on with (causal_lm), and
// questions whose choices are such texts (multiple_choice).
#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "data/text_split.h"
#include "data/visual_rows.h"

namespace espalier::data {
namespace {

// What the losses of `transformers` pass over.
constexpr std::int64_t kIgnored = -100;

class Seq2SeqSplit final : public TextSplit {
 public:
  Seq2SeqSplit(const DatasetReader& reader, const DatasetInfo& info, const std::string& split)
      : TextSplit(reader, info, split), targets_(reader, split, "target", info.vocab_size) {
    const auto num_inputs = static_cast<std::size_t>(num_rows()) + 1;
    reader.expect_size(split + "/target_offsets", static_cast<std::size_t>(targets_.num_rows()) + 1, num_inputs,
                       "as input_offsets");
    reader.check_references(split, num_rows());
    if (VisualRows::are_in(reader, split)) {
      images_.emplace(reader, info, split, num_rows());
    }
  }

  std::int64_t length(std::int64_t row) const override { return inputs().length(row) + targets_.length(row); }
  std::int64_t num_targets(std::int64_t row, std::int64_t /*max_length*/) const override {
    return targets_.length(row);
  }
  std::int64_t prompt_length(std::int64_t row) const override { return inputs().length(row); }

 private:
  void add_labels(NamedTensors& batch, const std::vector<std::int64_t>& rows, std::int64_t /*max_length*/,
                  std::int64_t pad_multiple) const override {
    const std::int64_t uncut = static_cast<std::int64_t>(targets_.ids().size());
    const std::int64_t width = round_up(targets_.longest(rows, uncut), pad_multiple);  // U
    batch["labels"] = targets_.pad(targets_.ids(), rows, uncut, width, kIgnored);
    if (images_) {
      images_->add(batch, rows);
    }
  }

  TokenRows targets_;
  std::optional<VisualRows> images_;
};

class CausalSplit final : public TextSplit {
 public:
  CausalSplit(const DatasetReader& reader, const DatasetInfo& info, const std::string& split)
      : TextSplit(reader, info, split) {
    const std::string prompts = split + "/prompt_lengths";
    prompt_lengths_ = reader.integers(prompts);
    reader.expect_size(prompts, prompt_lengths_.size(), static_cast<std::size_t>(num_rows()), "one a row");
    for (std::int64_t row = 0; row < num_rows(); ++row) {
      if (const std::int64_t stored = prompt(row); stored < 0 || stored >= length(row)) {
        reader.refuse(prompts, fmt::format("prompts in [0, {}) (the tokens of the row)", length(row)),
                      fmt::format("{} in row {}", stored, row));
      }
    }
    const std::string mask = split + "/loss_mask";
    if (reader.file().contains(mask)) {
      read_loss_mask(reader, mask);
    }
    for (std::int64_t row = 0; row < num_rows(); ++row) {
      if (num_targets(row, length(row)) == 0) {
        reader.refuse(loss_mask_.empty() ? prompts : mask, "a token to predict after the first in every row",
                      fmt::format("none in row {}", row));
      }
    }
  }

  std::int64_t prompt_length(std::int64_t row) const override {
    ESPALIER_CHECK(row >= 0 && row < num_rows(), "row {} of {}", row, num_rows());
    // Without a prompt there is no answer to hide, and no token at all would leave nothing to go on from.
    return prompt(row) > 0 ? prompt(row) : length(row);
  }

  std::int64_t num_targets(std::int64_t row, std::int64_t max_length) const override {
    std::int64_t count = 0;
    for (std::int64_t token = 1; token < std::min(length(row), max_length); ++token) {
      count += counts(row, token) ? 1 : 0;
    }
    return count;
  }

 private:
  void read_loss_mask(const DatasetReader& reader, const std::string& name) {
    loss_mask_ = reader.bytes(name, inputs().ids().size(), "as input_ids");
    for (std::int64_t row = 0; row < num_rows(); ++row) {
      for (std::int64_t token = 0; token < length(row); ++token) {
        if (const auto value = loss_mask_[static_cast<std::size_t>(inputs().begin(row) + token)]; value > 1) {
          reader.refuse(name, "0 or 1", fmt::format("{} at token {} of row {}", value, token, row));
        }
      }
    }
  }

  std::int64_t prompt(std::int64_t row) const { return prompt_lengths_[static_cast<std::size_t>(row)]; }

  // A mask knows of the prompt: one that is learned too has ones there.
  bool counts(std::int64_t row, std::int64_t token) const {
    return loss_mask_.empty() ? token >= prompt(row)
                              : loss_mask_[static_cast<std::size_t>(inputs().begin(row) + token)] != 0;
  }

  void add_labels(NamedTensors& batch, const std::vector<std::int64_t>& rows, std::int64_t max_length,
                  std::int64_t /*pad_multiple*/) const override {
    const std::int64_t width = batch.at("input_ids").size(1);  // T
    auto labels = inputs().pad(inputs().ids(), rows, max_length, width, kIgnored);
    auto* label_row = labels.mutable_data_ptr<std::int64_t>();
    for (const std::int64_t row : rows) {
      for (std::int64_t token = 0; token < std::min(length(row), max_length); ++token) {
        label_row[token] = counts(row, token) ? label_row[token] : kIgnored;
      }
      label_row += width;
    }
    batch["labels"] = std::move(labels);
  }

  std::vector<std::int64_t> prompt_lengths_;  // [rows]; 0: no prompt
  std::vector<std::uint8_t> loss_mask_;       // as the input ids, or empty
};

// Its rows are questions; the choices of all questions are the rows of a causal split.
class ChoiceSplit final : public Split {
 public:
  ChoiceSplit(const DatasetReader& reader, const DatasetInfo& info, const std::string& split)
      : path_(info.path), choices_(reader, info, split) {
    const std::string offsets = split + "/choice_offsets";
    choice_offsets_ = reader.offsets(offsets, static_cast<std::size_t>(choices_.num_rows()), /*shortest_row=*/2);
    const std::string labels = split + "/labels";
    answers_ = reader.integers(labels);
    reader.expect_size(labels, answers_.size(), static_cast<std::size_t>(num_rows()), "one a question");
    for (std::int64_t question = 0; question < num_rows(); ++question) {
      const auto answer = answers_[static_cast<std::size_t>(question)];
      if (const auto num_choices = end(question) - begin(question); answer < 0 || answer >= num_choices) {
        reader.refuse(labels, fmt::format("choices in [0, {}) of the question", num_choices),
                      fmt::format("{} in row {}", answer, question));
      }
    }
  }

  const std::string& name() const override { return choices_.name(); }
  std::int64_t num_rows() const override { return static_cast<std::int64_t>(choice_offsets_.size()) - 1; }
  std::int64_t length(std::int64_t row) const override {
    std::int64_t length = 0;
    for (std::int64_t choice = begin(row); choice < end(row); ++choice) {
      length += choices_.length(choice);
    }
    return length;
  }
  std::int64_t num_targets(std::int64_t row, std::int64_t max_length) const override {
    return choices_.num_targets(begin(row) + answers_[static_cast<std::size_t>(row)], max_length);
  }

  NamedTensors collate(const std::vector<std::int64_t>& rows, std::int64_t max_length, std::int64_t pad_multiple,
                       std::int64_t fixed_length) const override {
    std::vector<std::int64_t> choices;
    auto offsets = at::zeros({static_cast<std::int64_t>(rows.size()) + 1}, at::kLong);  // [Q + 1]
    auto answers = at::empty({static_cast<std::int64_t>(rows.size())}, at::kLong);      // [Q]
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (std::int64_t choice = begin(rows[i]); choice < end(rows[i]); ++choice) {
        require_whole(rows[i], choice, max_length);
        choices.push_back(choice);
      }
      offsets.mutable_data_ptr<std::int64_t>()[i + 1] = static_cast<std::int64_t>(choices.size());
      answers.mutable_data_ptr<std::int64_t>()[i] = answers_[static_cast<std::size_t>(rows[i])];
    }
    NamedTensors batch = choices_.collate(choices, max_length, pad_multiple, fixed_length);
    batch["choice_offsets"] = std::move(offsets);
    batch["answers"] = std::move(answers);
    return batch;
  }

 private:
  std::int64_t begin(std::int64_t question) const {
    ESPALIER_CHECK(question >= 0 && question < num_rows(), "row {} of {}", question, num_rows());
    return choice_offsets_[static_cast<std::size_t>(question)];
  }
  std::int64_t end(std::int64_t question) const { return choice_offsets_[static_cast<std::size_t>(question) + 1]; }

  // A choice without its last tokens would be likelier for it, and one without any the likeliest.
  void require_whole(std::int64_t question, std::int64_t choice, std::int64_t max_length) const {
    if (const std::int64_t found = choices_.length(choice); found > max_length) {
      throw ConfigError(
          fmt::format("{}: {}: expected choices of at most {} tokens (data.max_length), found one of {} in row {}; "
                      "raise data.max_length, or lower --max-length of tools/prepare.py, which cuts the prompt",
                      path_.string(), name(), max_length, found, question));
    }
  }

  std::filesystem::path path_;
  CausalSplit choices_;
  std::vector<std::int64_t> choice_offsets_;  // [questions + 1]
  std::vector<std::int64_t> answers_;         // [questions]
};

}  // namespace

std::shared_ptr<const Split> read_seq2seq_split(const DatasetReader& reader, const DatasetInfo& info,
                                                const std::string& name) {
  return std::make_shared<Seq2SeqSplit>(reader, info, name);
}

std::shared_ptr<const Split> read_causal_split(const DatasetReader& reader, const DatasetInfo& info,
                                               const std::string& name) {
  return std::make_shared<CausalSplit>(reader, info, name);
}

std::shared_ptr<const Split> read_choice_split(const DatasetReader& reader, const DatasetInfo& info,
                                               const std::string& name) {
  return std::make_shared<ChoiceSplit>(reader, info, name);
}

}  // namespace espalier::data
