// SPDX-License-Identifier: Apache-2.0
// A dataset file as plain arrays, so that a test states one good file and damages it in one place.
#pragma once

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "common/error.h"
#include "common/hdf5_file.h"
#include "data/dataset.h"

namespace espalier::data::test {

using Ints = std::vector<std::int64_t>;
using Ids = std::vector<std::int32_t>;
using Bytes = std::vector<std::uint8_t>;
using Floats = std::vector<float>;
using Array = std::variant<Ints, Ids, Bytes, Floats>;
using Arrays = std::map<std::string, Array>;

struct PlainFile {
  std::map<std::string, std::string> texts = {
      {"label_names", "[]"}, {"tokenizer_digest", "sha256:aa"}, {"source_digest", "sha256:bb"}};
  std::map<std::string, std::int64_t> numbers = {
      {"format_version", 1}, {"num_labels", 0}, {"pad_token_id", 7}, {"vocab_size", 20}, {"max_length", 16}};
  Arrays train;
  std::int64_t num_columns = 0;                             // of float arrays: [rows, num_columns]
  std::map<std::string, std::vector<std::int64_t>> shapes;  // of arrays that are no lists
};

class PlainFileTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(testing::TempDir()) /
              (std::string("espalier_") + test->name() + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
    path_ = folder_ / "data.h5";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Dataset open(const PlainFile& plain) {
    Hdf5File file = Hdf5File::create(path_);
    for (const auto& [name, value] : plain.texts) {
      file.write_attribute("/", name, value);
    }
    for (const auto& [name, value] : plain.numbers) {
      file.write_attribute("/", name, value);
    }
    for (const auto& [name, array] : plain.train) {
      std::visit(
          [&, &name = name](const auto& values) {
            std::vector<std::int64_t> shape = {static_cast<std::int64_t>(values.size())};
            Hdf5Type type = Hdf5Type::kInt64;
            using Values = std::decay_t<decltype(values)>;
            if constexpr (std::is_same_v<Values, Ids>) {
              type = Hdf5Type::kInt32;
            } else if constexpr (std::is_same_v<Values, Bytes>) {
              type = Hdf5Type::kUInt8;
            } else if constexpr (std::is_same_v<Values, Floats>) {
              type = Hdf5Type::kFloat32;
              if (plain.num_columns > 0) {
                shape = {shape[0] / plain.num_columns, plain.num_columns};
              }
            }
            if (const auto given = plain.shapes.find(name); given != plain.shapes.end()) {
              shape = given->second;
            }
            file.write("train/" + name, type, shape, values.data());
          },
          array);
    }
    file.flush_and_close();
    return Dataset::open(path_);
  }

  /// `change` damages the good file in one place: it must be refused with a sentence that names it and each of
  /// `pieces`.
  void expect_refusal(PlainFile plain, const std::function<void(PlainFile&)>& change,
                      const std::vector<std::string>& pieces) {
    change(plain);
    try {
      (void)open(plain);
      ADD_FAILURE() << "accepted a file with a wrong " << pieces.front();
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(path_.string()));
      for (const std::string& piece : pieces) {
        EXPECT_THAT(error.what(), testing::HasSubstr(piece));
      }
    }
  }

  std::filesystem::path folder_, path_;
};

/// The elements of an int64 tensor in row-major order.
inline Ints values(const at::Tensor& tensor) {
  EXPECT_EQ(tensor.scalar_type(), at::kLong);
  EXPECT_TRUE(tensor.is_contiguous());
  const auto* data = tensor.const_data_ptr<std::int64_t>();
  return {data, data + tensor.numel()};
}

}  // namespace espalier::data::test
