// SPDX-License-Identifier: Apache-2.0
// Reads the HDF5 files that tools/prepare.py writes (docs/dataset_format.md) and makes padded micro-batches of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace espalier::data {

/// Padded tensors under the names `transformers` gives them: input_ids [B, T] int64, attention_mask [B, T] int64,
/// token_type_ids [B, T] int64, labels [B] int64 (classification) or [B] float (regression).
using NamedTensors = std::map<std::string, at::Tensor>;

enum class TaskKind { kClassification, kRegression };  // seq2seq, causal LM, images: see docs/dataset_format.md
std::string_view to_string(TaskKind kind);

/// What the file says of itself.
struct DatasetInfo {
  std::filesystem::path path;
  TaskKind task = TaskKind::kClassification;
  std::int64_t num_labels = 0;
  std::vector<std::string> label_names;
  std::int64_t pad_token_id = 0;
  std::int64_t vocab_size = 0;
  std::string tokenizer_digest, source_digest;
  std::string content_digest;   ///< XXH3-128 of the file, for checkpoints
  std::int64_t max_length = 0;  ///< the truncation that prepare.py applied
};

/// One split, wholly in memory as ragged arrays (ids are int32: 8,000 snippets are 1 MB).
/// Thread: const methods are safe.
class Split {
 public:
  virtual ~Split() = default;
  [[nodiscard]] virtual const std::string& name() const = 0;
  [[nodiscard]] virtual std::int64_t num_rows() const = 0;
  /// Tokens of a row as the file has it.
  [[nodiscard]] virtual std::int64_t length(std::int64_t row) const = 0;
  /// Rows in the given order, cut to their first `max_length` tokens, padded on the right to the longest of them
  /// rounded up to `pad_multiple`, or to `fixed_length` if that is not 0. token_type_ids are there if the file has
  /// them. Requires: rows is not empty, every row in [0, num_rows()), max_length and pad_multiple above 0. Throws:
  /// ConfigError if a row does not fit into `fixed_length`.
  [[nodiscard]] virtual NamedTensors collate(const std::vector<std::int64_t>& rows, std::int64_t max_length,
                                             std::int64_t pad_multiple, std::int64_t fixed_length) const = 0;
};

class Dataset {
 public:
  /// Throws: ConfigError naming file and object for everything that is missing, of the wrong type or out of range.
  static Dataset open(const std::filesystem::path& path);
  [[nodiscard]] const DatasetInfo& info() const { return info_; }
  [[nodiscard]] bool has_split(const std::string& name) const { return splits_.contains(name); }
  /// Throws: ConfigError listing the splits there are.
  [[nodiscard]] const Split& split(const std::string& name) const;

 private:
  DatasetInfo info_;
  std::map<std::string, std::shared_ptr<const Split>> splits_;
};

}  // namespace espalier::data
