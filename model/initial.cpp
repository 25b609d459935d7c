// SPDX-License-Identifier: Apache-2.0
// Element i takes word i % 4 of Philox block i / 4 (normals: of the words' pair), so the threads that draw may be any
// number.
#include "model/initial.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "common/random.h"
#include "model/parallel.h"

namespace espalier::model {
namespace {

constexpr std::int64_t kWords = 4;
constexpr std::int64_t kTaskBlocks = 1024;  // some 100 microseconds of work

/// Centre of the word's interval: never 0 or 1.
double uniform_of(std::uint32_t word) {
  return (word + 0.5) * 0x1p-32;
}

std::array<double, kWords> normals_of(const std::array<std::uint32_t, kWords>& words) {
  std::array<double, kWords> normals{};
  for (std::size_t pair = 0; pair < kWords; pair += 2) {
    const double radius = std::sqrt(-2 * std::log(uniform_of(words[pair])));
    const double angle = 2 * std::numbers::pi * uniform_of(words[pair + 1]);
    normals[pair] = radius * std::cos(angle);
    normals[pair + 1] = radius * std::sin(angle);
  }
  return normals;
}

/// Fills a new tensor with scale * draw(Philox block).
template <typename Draw>
at::Tensor draw_by_name(at::IntArrayRef shape, double scale, std::uint64_t seed, std::string_view name, Draw draw) {
  const std::uint64_t key = derive_key(seed, RandomDomain::kInitial, name);
  at::Tensor tensor = at::empty(shape, at::kFloat);
  const std::int64_t num_elements = tensor.numel();
  auto* values = tensor.data_ptr<float>();
  const std::int64_t num_blocks = (num_elements + kWords - 1) / kWords;
  parallel_ranges(
      (num_blocks + kTaskBlocks - 1) / kTaskBlocks, /*grain=*/4, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t block = first * kTaskBlocks; block < std::min(last * kTaskBlocks, num_blocks); ++block) {
          const auto drawn = draw(philox4x32(key, static_cast<std::uint64_t>(block)));
          for (std::int64_t i = block * kWords; i < std::min((block + 1) * kWords, num_elements); ++i) {
            values[i] = static_cast<float>(scale * drawn[static_cast<std::size_t>(i % kWords)]);
          }
        }
      });
  return tensor;
}

}  // namespace

at::Tensor normal_by_name(at::IntArrayRef shape, double deviation, std::uint64_t seed, std::string_view name) {
  return draw_by_name(shape, deviation, seed, name, normals_of);
}

at::Tensor truncated_normal_by_name(at::IntArrayRef shape, double deviation, std::uint64_t seed,
                                    std::string_view name) {
  // erf maps what lies within two deviations onto a uniform number, so one draw is enough.
  const at::Tensor uniform = uniform_by_name(shape, std::erf(std::numbers::sqrt2), seed, name);
  return uniform.to(at::kDouble).erfinv_().mul_(std::numbers::sqrt2 * deviation).to(at::kFloat);
}

at::Tensor uniform_by_name(at::IntArrayRef shape, double bound, std::uint64_t seed, std::string_view name) {
  return draw_by_name(shape, bound, seed, name, [](const std::array<std::uint32_t, kWords>& words) {
    std::array<double, kWords> drawn{};
    for (std::size_t i = 0; i < kWords; ++i) {
      drawn[i] = 2 * uniform_of(words[i]) - 1;
    }
    return drawn;
  });
}

}  // namespace espalier::model
