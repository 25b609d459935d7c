// SPDX-License-Identifier: Apache-2.0
// What the splits of all text tasks share: ragged token ids, padded on the right. Everything was checked when the file
// was opened, so that collate() copies without looking: offsets that lead outside the ids, ids outside the vocabulary
// and labels outside the classes never reach a tensor.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "data/dataset_reader.h"

namespace espalier::data {

/// Rows of token ids, one row after the other. B rows of a batch, W its width.
class TokenRows {
 public:
  /// Reads `<split>/<side>_ids` and `<split>/<side>_offsets`; side: input or target. Throws: as DatasetReader.
  TokenRows(const DatasetReader& reader, const std::string& split, const std::string& side, std::int64_t vocab_size);

  [[nodiscard]] const std::vector<std::int32_t>& ids() const { return ids_; }
  [[nodiscard]] std::int64_t num_rows() const { return static_cast<std::int64_t>(offsets_.size()) - 1; }
  [[nodiscard]] std::int64_t length(std::int64_t row) const;
  /// Where the row starts among all tokens.
  [[nodiscard]] std::int64_t begin(std::int64_t row) const { return offsets_[static_cast<std::size_t>(row)]; }
  /// Tokens of the longest of `rows`, each cut to `max_length`.
  [[nodiscard]] std::int64_t longest(const std::vector<std::int64_t>& rows, std::int64_t max_length) const;
  /// [B, width] int64: of every row the first `max_length` of `values`, which has one for every token, then `padding`.
  template <typename T>
  [[nodiscard]] at::Tensor pad(const std::vector<T>& values, const std::vector<std::int64_t>& rows,
                               std::int64_t max_length, std::int64_t width, std::int64_t padding) const;

 private:
  std::vector<std::int32_t> ids_;
  std::vector<std::int64_t> offsets_;  // [rows + 1]
};

std::int64_t round_up(std::int64_t length, std::int64_t multiple);

/// A split whose rows are texts; what is asked of them is left to each task.
class TextSplit : public Split {
 public:
  TextSplit(const DatasetReader& reader, const DatasetInfo& info, std::string name);

  [[nodiscard]] const std::string& name() const override { return name_; }
  [[nodiscard]] std::int64_t num_rows() const override { return inputs_.num_rows(); }
  [[nodiscard]] std::int64_t length(std::int64_t row) const override { return inputs_.length(row); }
  [[nodiscard]] NamedTensors collate(const std::vector<std::int64_t>& rows, std::int64_t max_length,
                                     std::int64_t pad_multiple, std::int64_t fixed_length) const final;

 protected:
  [[nodiscard]] const TokenRows& inputs() const { return inputs_; }
  /// Adds the labels of `rows` to a batch that has its inputs.
  virtual void add_labels(NamedTensors& batch, const std::vector<std::int64_t>& rows, std::int64_t max_length,
                          std::int64_t pad_multiple) const = 0;

 private:
  std::filesystem::path path_;
  std::string name_;
  std::int64_t pad_token_id_;
  TokenRows inputs_;
  std::vector<std::uint8_t> token_type_ids_;  // as the input ids, or empty
};

/// The split `name` for the task of the file. Throws: ConfigError naming file and array for everything that is wrong.
std::shared_ptr<const Split> read_split(const DatasetReader& reader, const DatasetInfo& info, const std::string& name);

// Those of one kind of task each. Throws: as read_split().
std::shared_ptr<const Split> read_labelled_split(const DatasetReader& reader, const DatasetInfo& info,
                                                 const std::string& name);
std::shared_ptr<const Split> read_seq2seq_split(const DatasetReader& reader, const DatasetInfo& info,
                                                const std::string& name);
std::shared_ptr<const Split> read_causal_split(const DatasetReader& reader, const DatasetInfo& info,
                                               const std::string& name);
std::shared_ptr<const Split> read_image_split(const DatasetReader& reader, const DatasetInfo& info,
                                              const std::string& name);
std::shared_ptr<const Split> read_choice_split(const DatasetReader& reader, const DatasetInfo& info,
                                               const std::string& name);

}  // namespace espalier::data
