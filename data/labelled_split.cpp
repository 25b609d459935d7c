// SPDX-License-Identifier: Apache-2.0
// Splits of which every row has labels beside its text: a class, a number, or a 0 or 1 for every label, and further
// columns of classes or numbers.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "data/text_split.h"

namespace espalier::data {
namespace {

// One of the two lists is empty. [rows], or [rows, num_columns] if that is not 0
struct LabelColumn {
  std::string name;
  std::int64_t num_columns = 0;
  std::vector<std::int64_t> classes = {};
  std::vector<float> numbers = {};
};

template <typename T>
at::Tensor gather(const std::vector<T>& values, std::int64_t num_columns, const std::vector<std::int64_t>& rows,
                  at::ScalarType type) {
  std::vector<std::int64_t> shape = {static_cast<std::int64_t>(rows.size())};
  if (num_columns > 0) {
    shape.push_back(num_columns);
  }
  auto labels = at::empty(shape, type);  // [B] or [B, L]
  auto* out = labels.mutable_data_ptr<T>();
  const std::int64_t per_row = std::max<std::int64_t>(num_columns, 1);
  for (const std::int64_t row : rows) {
    out = std::copy_n(values.data() + row * per_row, per_row, out);
  }
  return labels;
}

class LabelledSplit final : public TextSplit {
 public:
  LabelledSplit(const DatasetReader& reader, const DatasetInfo& info, const std::string& split)
      : TextSplit(reader, info, split) {
    if (info.task == TaskKind::kClassification) {
      read_classes(reader, "labels", info.num_labels);
    } else if (info.task == TaskKind::kRegression) {
      read_numbers(reader, "labels");
    } else {
      read_zeros_and_ones(reader, "labels", info.num_labels);
    }
    for (const auto& [column, class_names] : info.label_columns) {
      if (class_names.empty()) {
        read_numbers(reader, "labels_" + column);
      } else {
        read_classes(reader, "labels_" + column, static_cast<std::int64_t>(class_names.size()));
      }
    }
  }

  std::int64_t num_targets(std::int64_t /*row*/, std::int64_t /*max_length*/) const override {
    return std::max<std::int64_t>(columns_.front().num_columns, 1);
  }

 private:
  void read_classes(const DatasetReader& reader, const std::string& column, std::int64_t num_classes) {
    columns_.push_back({.name = column, .classes = reader.classes(name() + "/" + column, num_rows(), num_classes)});
  }

  void read_numbers(const DatasetReader& reader, const std::string& column) {
    const std::string array = name() + "/" + column;
    auto numbers = reader.list<float>(array, {Hdf5Type::kFloat32, Hdf5Type::kFloat64}, "float32");
    expect_rows(reader, array, numbers.size());
    for (std::size_t row = 0; row < numbers.size(); ++row) {
      if (!std::isfinite(numbers[row])) {
        reader.refuse(array, "finite targets", fmt::format("{} in row {}", numbers[row], row));
      }
    }
    columns_.push_back({.name = column, .numbers = std::move(numbers)});
  }

  void read_zeros_and_ones(const DatasetReader& reader, const std::string& column, std::int64_t num_labels) {
    const std::string array = name() + "/" + column;
    auto values = reader.list<float>(array, {Hdf5Type::kFloat32, Hdf5Type::kFloat64}, "float32", num_labels);
    const auto per_row = static_cast<std::size_t>(num_labels);
    expect_rows(reader, array, values.size() / per_row);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i] != 0.0F && values[i] != 1.0F) {
        reader.refuse(array, "0 or 1 for every label",
                      fmt::format("{} for label {} in row {}", values[i], i % per_row, i / per_row));
      }
    }
    columns_.push_back({.name = column, .num_columns = num_labels, .numbers = std::move(values)});
  }

  void expect_rows(const DatasetReader& reader, const std::string& array, std::size_t found) const {
    reader.expect_size(array, found, static_cast<std::size_t>(num_rows()), "one a row");
  }

  void add_labels(NamedTensors& batch, const std::vector<std::int64_t>& rows, std::int64_t /*max_length*/,
                  std::int64_t /*pad_multiple*/) const override {
    for (const LabelColumn& column : columns_) {
      batch[column.name] = column.classes.empty() ? gather(column.numbers, column.num_columns, rows, at::kFloat)
                                                  : gather(column.classes, column.num_columns, rows, at::kLong);
    }
  }

  std::vector<LabelColumn> columns_;  // labels first
};

}  // namespace

std::shared_ptr<const Split> read_labelled_split(const DatasetReader& reader, const DatasetInfo& info,
                                                 const std::string& name) {
  return std::make_shared<LabelledSplit>(reader, info, name);
}

}  // namespace espalier::data
