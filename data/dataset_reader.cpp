// SPDX-License-Identifier: Apache-2.0
#include "data/dataset_reader.h"

#include "common/error.h"

namespace espalier::data {

void DatasetReader::refuse(std::string_view object, std::string_view expected, std::string_view found) const {
  throw ConfigError(fmt::format("{}: {}: expected {}, found {}; make the file again with tools/prepare.py",
                                file_.path().string(), object, expected, found));
}

std::string DatasetReader::text(const std::string& name) const {
  const auto value = file_.text_attribute("/", name);
  if (!value) {
    refuse("attribute " + name, "a text", "none");
  }
  return *value;
}

std::int64_t DatasetReader::integer(const std::string& name, std::int64_t lowest) const {
  const auto value = file_.int_attribute("/", name);
  if (!value) {
    refuse("attribute " + name, "a whole number", "none");
  }
  if (*value < lowest) {
    refuse("attribute " + name, fmt::format("at least {}", lowest), std::to_string(*value));
  }
  return *value;
}

void DatasetReader::check_shape(const std::string& name, std::initializer_list<Hdf5Type> types, std::string_view kind,
                                std::int64_t num_columns) const {
  read_.insert(name);
  const Hdf5Info info = file_.info(name);
  const bool is_list = num_columns == 0;
  if (info.shape.size() != (is_list ? 1u : 2u) || (!is_list && info.shape[1] != num_columns) ||
      std::find(types.begin(), types.end(), info.type) == types.end()) {
    refuse(name, fmt::format("{} of {}", is_list ? "a list" : fmt::format("[rows, {}]", num_columns), kind),
           fmt::format("shape [{}] of another kind or type", fmt::join(info.shape, ", ")));
  }
  expect_fits(name, info);
}

void DatasetReader::expect_fits(const std::string& name, const Hdf5Info& info) const {
  // Arrays are stored as they are, so one that says it is larger than its file is damaged: refused before it is
  // allocated.
  auto bytes = static_cast<double>(size_of(info.type));
  for (const std::int64_t size : info.shape) {
    bytes *= static_cast<double>(size);
  }
  if (bytes > static_cast<double>(std::filesystem::file_size(file_.path()))) {
    refuse(name, "no more elements than the file has bytes for",
           fmt::format("shape [{}]", fmt::join(info.shape, ", ")));
  }
}

std::vector<std::uint8_t> DatasetReader::bytes(const std::string& name, std::size_t expected_size,
                                               std::string_view of_what) const {
  auto values = list<std::uint8_t>(name, {Hdf5Type::kUInt8}, "uint8");
  expect_size(name, values.size(), expected_size, of_what);
  return values;
}

std::vector<std::int64_t> DatasetReader::offsets(const std::string& name, std::size_t num_elements,
                                                 std::int64_t shortest_row) const {
  auto offsets = integers(name);
  if (offsets.size() < 2) {
    refuse(name, "rows + 1 offsets for at least one row", fmt::format("{} offsets", offsets.size()));
  }
  if (offsets.front() != 0) {
    refuse(name, "0 as the first offset", std::to_string(offsets.front()));
  }
  for (std::size_t row = 0; row + 1 < offsets.size(); ++row) {
    // Compared, not subtracted: a damaged offset may be near either end of the type.
    if (offsets[row + 1] < offsets[row] || offsets[row + 1] - offsets[row] < shortest_row) {
      refuse(name, fmt::format("row {} to have at least {} elements", row, shortest_row),
             fmt::format("offsets {} and {}", offsets[row], offsets[row + 1]));
    }
  }
  if (offsets.back() != static_cast<std::int64_t>(num_elements)) {
    refuse(name, fmt::format("{} as the last offset (the number of elements)", num_elements),
           std::to_string(offsets.back()));
  }
  return offsets;
}

std::vector<std::int64_t> DatasetReader::classes(const std::string& name, std::int64_t num_rows,
                                                 std::int64_t num_classes) const {
  auto classes = integers(name);
  expect_size(name, classes.size(), static_cast<std::size_t>(num_rows), "one a row");
  for (std::size_t row = 0; row < classes.size(); ++row) {
    if (classes[row] < 0 || classes[row] >= num_classes) {
      refuse(name, fmt::format("classes in [0, {}) (the label names)", num_classes),
             fmt::format("{} in row {}", classes[row], row));
    }
  }
  return classes;
}

DatasetReader::StoredArray DatasetReader::stored_elements(const std::string& name, Hdf5Type type, std::string_view kind,
                                                          std::size_t num_dims) const {
  read_.insert(name);
  const Hdf5Info info = file_.info(name);
  if (info.type != type || info.shape.size() != num_dims ||
      std::find(info.shape.begin(), info.shape.end(), 0) != info.shape.end()) {
    refuse(name, fmt::format("{} of {} dimensions, none of them 0", kind, num_dims),
           fmt::format("shape [{}] of another kind or type", fmt::join(info.shape, ", ")));
  }
  expect_fits(name, info);
  const auto offset = file_.byte_offset(name);
  if (!offset) {
    refuse(name, "contiguous and uncompressed elements", "pieces");
  }
  return {info.shape, *offset};
}

void DatasetReader::check_row_ids(const std::string& split, std::int64_t num_rows) const {
  const auto ids = list<std::uint8_t>(split + "/id_bytes", {Hdf5Type::kUInt8}, "uint8");
  const std::string name = split + "/id_offsets";
  expect_size(name, offsets(name, ids.size(), /*shortest_row=*/0).size(), static_cast<std::size_t>(num_rows) + 1,
              "rows + 1");
}

void DatasetReader::check_references(const std::string& split, std::int64_t num_rows) const {
  const std::string bytes = split + "/reference_bytes";
  if (!file_.contains(bytes)) {
    return;
  }
  const auto texts = list<std::uint8_t>(bytes, {Hdf5Type::kUInt8}, "uint8");
  const auto num_references = offsets(split + "/reference_offsets", texts.size(), /*shortest_row=*/0).size() - 1;
  const std::string rows = split + "/reference_row_offsets";
  expect_size(rows, offsets(rows, num_references, /*shortest_row=*/1).size(), static_cast<std::size_t>(num_rows) + 1,
              "rows + 1");
  if (const std::string scores = split + "/reference_scores"; file_.contains(scores)) {
    expect_size(scores, list<float>(scores, {Hdf5Type::kFloat32}, "float32").size(), num_references,
                "one for every reference");
  }
}

void DatasetReader::expect_size(const std::string& name, std::size_t found, std::size_t expected,
                                std::string_view of_what) const {
  if (found != expected) {
    refuse(name, fmt::format("{} elements ({})", expected, of_what), std::to_string(found));
  }
}

void DatasetReader::expect_all_read(const std::string& split) const {
  for (const std::string& array : file_.children(split)) {
    if (const std::string name = fmt::format("{}/{}", split, array); !read_.contains(name)) {
      refuse(name, fmt::format("only the arrays {}", fmt::join(read_, ", ")), "one more");
    }
  }
}

}  // namespace espalier::data
