// SPDX-License-Identifier: Apache-2.0
// What the tests of checkpoint/ share: tensors of every stored type, and hands that damage files.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "checkpoint/tensor_file.h"
#include "common/durable_file.h"
#include "tests/support/temporary_folder.h"

namespace espalier::checkpoint {

inline at::Tensor counted(at::IntArrayRef shape, double start) {
  std::int64_t num_elements = 1;
  for (const std::int64_t size : shape) num_elements *= size;
  return at::arange(num_elements, at::kDouble).mul(0.37).add(start).reshape(shape);
}

/// Every stored type, a scalar, an empty tensor, a strided one, values that are not finite, and names of which one is a
/// prefix of another. `version` makes other values.
inline NamedTensors all_tensors(double version) {
  NamedTensors tensors;
  tensors["head.weight"] = counted({5, 3}, version).to(at::kFloat);
  tensors["head.weight/exp_avg"] = counted({5, 3}, version + 1).to(at::kFloat);
  tensors["head.weight/exp_avg_sq"] = counted({3, 5}, version + 2).to(at::kFloat).t();
  tensors["odd%2Fname"] = counted({2}, version).to(at::kDouble);
  tensors["side.0.down"] = counted({4, 2}, version).to(at::kBFloat16);
  tensors["side.0.gate"] = at::full({}, version, at::kFloat);
  tensors["side.1.down"] = counted({4}, version).to(at::kHalf);
  tensors["side.1.empty"] = at::empty({0, 7}, at::kFloat);
  tensors["position"] = at::full({3}, 1e15 + version, at::kDouble).to(at::kLong);
  tensors["counts"] = counted({6}, version).to(at::kInt);
  tensors["bytes"] = counted({6}, version).to(at::kByte);
  tensors["not_finite"] = at::tensor({1.0 / 0.0, -1.0 / 0.0, 0.0 / 0.0, version}, at::kFloat);
  return tensors;
}

/// The tensors that `rank` of `num_ranks` holds: dealt out one by one.
inline NamedTensors dealt(const NamedTensors& all, int rank, int num_ranks) {
  NamedTensors mine;
  int index = 0;
  for (const auto& [name, tensor] : all) {
    if (index++ % num_ranks == rank) mine.emplace(name, tensor);
  }
  return mine;
}

inline bool equal_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return false;
  if (a.numel() == 0) return true;
  return at::equal(a.contiguous().flatten().view(at::kByte), b.contiguous().flatten().view(at::kByte));
}

inline void flip_bit(const std::filesystem::path& file, std::uintmax_t offset) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(static_cast<std::streamoff>(offset));
  const auto byte = static_cast<char>(stream.get() ^ 4);
  stream.seekp(static_cast<std::streamoff>(offset));
  stream.put(byte);
  ASSERT_TRUE(stream.good()) << file;
}

/// Where `needle` begins in the file.
inline std::uintmax_t offset_of(const std::filesystem::path& file, const std::string& needle) {
  const std::size_t offset = read_file(file).find(needle);
  EXPECT_NE(offset, std::string::npos) << file;
  return offset;
}

/// Expects an exception of type `Expected` whose text has all the parts.
template <typename Expected, typename Action>
void expect_error(const Action& action, const std::vector<std::string>& parts) {
  try {
    action();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Expected& error) {
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << part << " is not in: " << error.what();
    }
  }
}

}  // namespace espalier::checkpoint
