// SPDX-License-Identifier: Apache-2.0
#include "data/text_split.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/error.h"

namespace espalier::data {

TokenRows::TokenRows(const DatasetReader& reader, const std::string& split, const std::string& side,
                     std::int64_t vocab_size) {
  const std::string name = split + "/" + side + "_ids";
  ids_ = reader.list<std::int32_t>(name, {Hdf5Type::kInt32, Hdf5Type::kInt64}, "int32");
  offsets_ = reader.offsets(split + "/" + side + "_offsets", ids_.size(), /*shortest_row=*/1);
  for (std::int64_t row = 0; row < num_rows(); ++row) {
    for (std::int64_t token = begin(row); token < begin(row + 1); ++token) {
      if (const std::int32_t id = ids_[static_cast<std::size_t>(token)]; id < 0 || id >= vocab_size) {
        reader.refuse(name, fmt::format("token ids in [0, {}) (vocab_size)", vocab_size),
                      fmt::format("{} in row {}", id, row));
      }
    }
  }
}

std::int64_t TokenRows::length(std::int64_t row) const {
  ESPALIER_CHECK(row >= 0 && row < num_rows(), "row {} of {}", row, num_rows());
  return begin(row + 1) - begin(row);
}

std::int64_t TokenRows::longest(const std::vector<std::int64_t>& rows, std::int64_t max_length) const {
  std::int64_t longest = 0;
  for (const std::int64_t row : rows) {
    longest = std::max(longest, std::min(length(row), max_length));
  }
  return longest;
}

template <typename T>
at::Tensor TokenRows::pad(const std::vector<T>& values, const std::vector<std::int64_t>& rows, std::int64_t max_length,
                          std::int64_t width, std::int64_t padding) const {
  auto padded = at::empty({static_cast<std::int64_t>(rows.size()), width}, at::kLong);
  auto* out = padded.template mutable_data_ptr<std::int64_t>();
  for (const std::int64_t row : rows) {
    const std::int64_t num_tokens = std::min(length(row), max_length);
    out = std::copy_n(values.data() + begin(row), num_tokens, out);
    out = std::fill_n(out, width - num_tokens, padding);
  }
  return padded;
}
template at::Tensor TokenRows::pad(const std::vector<std::int32_t>&, const std::vector<std::int64_t>&, std::int64_t,
                                   std::int64_t, std::int64_t) const;
template at::Tensor TokenRows::pad(const std::vector<std::uint8_t>&, const std::vector<std::int64_t>&, std::int64_t,
                                   std::int64_t, std::int64_t) const;

std::int64_t round_up(std::int64_t length, std::int64_t multiple) {
  return (length + multiple - 1) / multiple * multiple;
}

TextSplit::TextSplit(const DatasetReader& reader, const DatasetInfo& info, std::string name)
    : path_(info.path),
      name_(std::move(name)),
      pad_token_id_(info.pad_token_id),
      inputs_(reader, name_, "input", info.vocab_size) {
  if (const std::string types = name_ + "/token_type_ids"; reader.file().contains(types)) {
    token_type_ids_ = reader.bytes(types, inputs_.ids().size(), "as input_ids");
  }
}

NamedTensors TextSplit::collate(const std::vector<std::int64_t>& rows, std::int64_t max_length,
                                std::int64_t pad_multiple, std::int64_t fixed_length) const {
  ESPALIER_CHECK(!rows.empty() && max_length > 0 && pad_multiple > 0 && fixed_length >= 0,
                 "{} rows, max_length {}, pad_multiple {}, fixed_length {}", rows.size(), max_length, pad_multiple,
                 fixed_length);
  const std::int64_t longest = inputs_.longest(rows, max_length);
  if (fixed_length != 0 && longest > fixed_length) {
    throw ConfigError(
        fmt::format("{}: {}: expected rows of at most {} tokens (data.fixed_length), found one of {}; raise "
                    "data.fixed_length or lower data.max_length",
                    path_.string(), name_, fixed_length, longest));
  }
  const std::int64_t width = fixed_length != 0 ? fixed_length : round_up(longest, pad_multiple);  // T
  NamedTensors batch{{"input_ids", inputs_.pad(inputs_.ids(), rows, max_length, width, pad_token_id_)}};
  auto mask = at::zeros_like(batch["input_ids"]);  // [B, T]
  auto* mask_row = mask.mutable_data_ptr<std::int64_t>();
  for (const std::int64_t row : rows) {
    std::fill_n(mask_row, std::min(inputs_.length(row), max_length), 1);
    mask_row += width;
  }
  batch["attention_mask"] = std::move(mask);
  if (!token_type_ids_.empty()) {
    batch["token_type_ids"] = inputs_.pad(token_type_ids_, rows, max_length, width, 0);
  }
  add_labels(batch, rows, max_length, pad_multiple);
  return batch;
}

std::shared_ptr<const Split> read_split(const DatasetReader& reader, const DatasetInfo& info, const std::string& name) {
  const auto read = [&] {
    switch (info.task) {
      case TaskKind::kClassification:
      case TaskKind::kRegression:
      case TaskKind::kMultiLabel:
        return read_labelled_split(reader, info, name);
      case TaskKind::kSeq2Seq:
        return read_seq2seq_split(reader, info, name);
      case TaskKind::kCausalLm:
        return read_causal_split(reader, info, name);
      case TaskKind::kMultipleChoice:
        return read_choice_split(reader, info, name);
      case TaskKind::kImageClassification:
        return read_image_split(reader, info, name);
    }
    ESPALIER_CHECK(false, "task {}", static_cast<int>(info.task));
  };
  auto split = read();
  reader.check_row_ids(name, split->num_rows());
  reader.expect_all_read(name);
  return split;
}

}  // namespace espalier::data
