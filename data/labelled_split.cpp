// SPDX-License-Identifier: Apache-2.0
// Splits of which every row has labels beside its text: a class, a number, or a 0 or 1 for every label, and further
// columns of classes or numbers.
#include <ATen/ATen.h>

#include <cmath>

#include "common/check.h"
#include "data/text_split.h"

namespace espalier::data {
namespace {

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
    const at::Tensor& values = columns_.at("labels");
    return values.dim() == 2 ? values.size(1) : 1;
  }

  at::Tensor labels(const std::string& tensor) const override {
    const auto found = columns_.find(tensor);
    ESPALIER_CHECK(found != columns_.end(), "{}: {}", name(), tensor);
    return found->second.clone();
  }

 private:
  void read_classes(const DatasetReader& reader, const std::string& column, std::int64_t num_classes) {
    columns_[column] = at::tensor(reader.classes(name() + "/" + column, num_rows(), num_classes), at::kLong);
  }

  void read_numbers(const DatasetReader& reader, const std::string& column) {
    const std::string array = name() + "/" + column;
    const auto numbers = reader.list<float>(array, {Hdf5Type::kFloat32, Hdf5Type::kFloat64}, "float32");
    expect_rows(reader, array, numbers.size());
    for (std::size_t row = 0; row < numbers.size(); ++row) {
      if (!std::isfinite(numbers[row])) {
        reader.refuse(array, "finite targets", fmt::format("{} in row {}", numbers[row], row));
      }
    }
    columns_[column] = at::tensor(numbers);
  }

  void read_zeros_and_ones(const DatasetReader& reader, const std::string& column, std::int64_t num_labels) {
    const std::string array = name() + "/" + column;
    const auto values = reader.list<float>(array, {Hdf5Type::kFloat32, Hdf5Type::kFloat64}, "float32", num_labels);
    const auto per_row = static_cast<std::size_t>(num_labels);
    expect_rows(reader, array, values.size() / per_row);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (values[i] != 0.0F && values[i] != 1.0F) {
        reader.refuse(array, "0 or 1 for every label",
                      fmt::format("{} for label {} in row {}", values[i], i % per_row, i / per_row));
      }
    }
    columns_[column] = at::tensor(values).view({-1, num_labels});
  }

  void expect_rows(const DatasetReader& reader, const std::string& array, std::size_t found) const {
    reader.expect_size(array, found, static_cast<std::size_t>(num_rows()), "one a row");
  }

  void add_labels(NamedTensors& batch, const std::vector<std::int64_t>& rows, std::int64_t /*max_length*/,
                  std::int64_t /*pad_multiple*/) const override {
    const auto index = at::tensor(rows, at::kLong);
    for (const auto& [column, values] : columns_) {
      batch[column] = values.index_select(/*dim=*/0, index);
    }
  }

  NamedTensors columns_;  // labels and labels_<name>: [N], or [N, L] of several labels
};

}  // namespace

std::shared_ptr<const Split> read_labelled_split(const DatasetReader& reader, const DatasetInfo& info,
                                                 const std::string& name) {
  return std::make_shared<LabelledSplit>(reader, info, name);
}

}  // namespace espalier::data
