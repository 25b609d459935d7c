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

/// Padded tensors under the names `transformers` gives them; B rows, T input tokens, U target tokens, L labels.
/// All texts: input_ids [B, T] int64, attention_mask [B, T] int64; token_type_ids [B, T] int64 if the file has them.
/// classification, regression, multi_label: labels [B] int64, [B] float, [B, L] float; labels_<name> likewise [B].
/// seq2seq: labels [B, U] int64, -100 at padding; of rows with images, each of V tokens of width F, I of them in a row,
/// vis_feats [B, I * V, F] float, vis_boxes [B, I * V, 4] float (x1, x2, y1, y2) if the file has them, and where I > 1
/// img_order_ids and obj_order_ids [B, I * V] int64.
/// causal_lm: labels [B, T] int64, the input ids at the positions that the loss counts and -100 elsewhere, unshifted.
/// multiple_choice, Q questions with B choices in all: as causal_lm, and choice_offsets [Q + 1] int64 (question q is
/// rows choice_offsets[q] to choice_offsets[q + 1]) and answers [Q] int64 (the right choice, from 0 in its question).
/// image_classification has no tokens: pixel_values [B, C, H, W] float, (byte / 255 - mean) / std of each channel, and
/// labels [B] int64.
using NamedTensors = std::map<std::string, at::Tensor>;

enum class TaskKind {
  kClassification,
  kRegression,
  kMultiLabel,
  kSeq2Seq,
  kCausalLm,
  kMultipleChoice,
  kImageClassification
};
std::string_view to_string(TaskKind kind);

/// What the file says of itself.
struct DatasetInfo {
  std::filesystem::path path;
  TaskKind task = TaskKind::kClassification;
  std::int64_t num_labels = 0;  ///< 0 where targets are tokens
  std::vector<std::string> label_names;
  std::map<std::string, std::vector<std::string>> label_columns;  ///< further ones: class names, none for numbers
  std::string label_tensor = "labels";                            ///< the tensor of a batch that holds what is learned
  std::int64_t pad_token_id = 0;
  std::int64_t vocab_size = 0;  ///< 0 for images
  std::string tokenizer_digest, source_digest;
  std::string content_digest;                ///< tells files apart, for checkpoints
  std::int64_t max_length = 0;               ///< the truncation that prepare.py applied; 0 for images
  std::vector<float> pixel_mean, pixel_std;  ///< of each channel; images only
};

/// The same dataset with the further label column `column` in the place of its labels; "": as it is.
/// Throws: ConfigError listing the columns there are.
DatasetInfo with_label_column(DatasetInfo info, const std::string& column);

/// One split: texts wholly in memory as ragged arrays (ids are int32: 8,000 snippets are 1 MB), images and features of
/// images in their file.
/// Thread: const methods are safe.
class Split {
 public:
  virtual ~Split() = default;
  [[nodiscard]] virtual const std::string& name() const = 0;
  /// Rows that a sampler deals out. multiple_choice: questions, so that a micro-batch never parts the choices of one.
  [[nodiscard]] virtual std::int64_t num_rows() const = 0;
  /// Tokens of a row as the file has it. seq2seq: input and target. multiple_choice: of all choices. Images: 1.
  [[nodiscard]] virtual std::int64_t length(std::int64_t row) const = 0;
  /// How many terms the row gives to the loss, so that a mean over any rows can be taken before one is padded:
  /// 1 for a class or a number, the labels for multi_label, else the label tokens that collate(rows, max_length, ...)
  /// gives. A causal label at position 0 does not count: nothing stands before it to predict it from.
  /// multiple_choice: those of the right choice.
  [[nodiscard]] virtual std::int64_t num_targets(std::int64_t row, std::int64_t max_length) const = 0;
  /// Input tokens from which generation goes on: the prompt of causal_lm; without one, and for seq2seq, the whole
  /// input. Requires: one of these tasks.
  [[nodiscard]] virtual std::int64_t prompt_length(std::int64_t row) const;
  /// Labels of all rows in the order of the file, [N] or [N, L]: what collate() gives as `tensor` (labels or
  /// labels_<name>), without reading inputs. Requires: a task whose labels are not tokens, and a `tensor` it has.
  [[nodiscard]] virtual at::Tensor labels(const std::string& tensor) const;
  /// Rows in the given order, cut to their first `max_length` tokens, padded on the right to the longest of them
  /// rounded up to `pad_multiple`, or to `fixed_length` if that is not 0. Targets of seq2seq are not cut, and padded to
  /// `pad_multiple` alone. Images ignore all three. Requires: rows is not empty, every row in [0, num_rows()),
  /// max_length and pad_multiple above 0. Throws: ConfigError if a row does not fit into `fixed_length`, or if
  /// `max_length` would cut a choice.
  [[nodiscard]] virtual NamedTensors collate(const std::vector<std::int64_t>& rows, std::int64_t max_length,
                                             std::int64_t pad_multiple, std::int64_t fixed_length) const = 0;
};

class Dataset {
 public:
  /// A file without the attribute content_digest, as prepare.py once wrote them, is read whole to make one.
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
