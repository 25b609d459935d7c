// SPDX-License-Identifier: Apache-2.0
// Sentences about one object of one dataset file: every read is checked, and a refusal says what the file should hold.
#pragma once

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/hdf5_file.h"

namespace espalier::data {

/// Thread: one thread per object: it remembers which arrays were read.
/// Throws: ConfigError as refuse(), every reader and check, for what is absent, of another kind or out of range.
class DatasetReader {
 public:
  explicit DatasetReader(const std::filesystem::path& path) : file_(Hdf5File::open(path)) {}

  [[nodiscard]] const Hdf5File& file() const { return file_; }

  /// Throws: ConfigError, always.
  [[noreturn]] void refuse(std::string_view object, std::string_view expected, std::string_view found) const;

  /// Root attributes. Throws: ConfigError if absent, of another kind or below `lowest`.
  [[nodiscard]] std::string text(const std::string& name) const;
  [[nodiscard]] std::int64_t integer(const std::string& name, std::int64_t lowest) const;

  /// An array [rows], or [rows, num_columns] if that is not 0, row by row; `kind` is its type as the format names it.
  template <typename T>
  [[nodiscard]] std::vector<T> list(const std::string& name, std::initializer_list<Hdf5Type> types,
                                    std::string_view kind, std::int64_t num_columns = 0) const {
    check_shape(name, types, kind, num_columns);
    return file_.read_vector<T>(name);
  }
  [[nodiscard]] std::vector<std::int64_t> integers(const std::string& name) const {
    return list<std::int64_t>(name, {Hdf5Type::kInt64, Hdf5Type::kInt32}, "int64");
  }
  /// One byte for each of `expected_size` elements.
  [[nodiscard]] std::vector<std::uint8_t> bytes(const std::string& name, std::size_t expected_size,
                                                std::string_view of_what) const;
  /// Row r of a ragged array of `num_elements` is [offsets[r], offsets[r + 1]).
  [[nodiscard]] std::vector<std::int64_t> offsets(const std::string& name, std::size_t num_elements,
                                                  std::int64_t shortest_row) const;
  /// Class indices, one for each of `num_rows`.
  [[nodiscard]] std::vector<std::int64_t> classes(const std::string& name, std::int64_t num_rows,
                                                  std::int64_t num_classes) const;
  /// An array that stays in the file, for it may be larger than memory.
  struct StoredArray {
    std::vector<std::int64_t> shape;
    std::int64_t offset = 0;  // of its first byte in the file
  };
  /// An array of exactly `type`, which the format calls `kind`. No dimension is 0.
  [[nodiscard]] StoredArray stored_elements(const std::string& name, Hdf5Type type, std::string_view kind,
                                            std::size_t num_dims) const;
  /// The ids of rows are for people and other programs: checked with the rest, not kept.
  void check_row_ids(const std::string& split, std::int64_t num_rows) const;

  /// The texts that a generated one is scored against, several for a row and perhaps with scores: for tools/score.py,
  /// checked, not kept. There may be none.
  void check_references(const std::string& split, std::int64_t num_rows) const;

  void expect_size(const std::string& name, std::size_t found, std::size_t expected, std::string_view of_what) const;
  /// Refuses an array of the split that nothing has read.
  void expect_all_read(const std::string& split) const;

 private:
  void check_shape(const std::string& name, std::initializer_list<Hdf5Type> types, std::string_view kind,
                   std::int64_t num_columns) const;
  void expect_fits(const std::string& name, const Hdf5Info& info) const;

  Hdf5File file_;
  mutable std::set<std::string> read_;
};

}  // namespace espalier::data
