// SPDX-License-Identifier: Apache-2.0
#include "model/attention_tile.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "model/dropout_kernel.h"

namespace espalier::model {
namespace {

// Eight floats; on machines without such registers the compiler takes several smaller ones. may_alias: they lie over
// float arrays.
using Lanes = float __attribute__((vector_size(32), may_alias));
using LanesAnywhere = std::uint32_t __attribute__((vector_size(32), may_alias, aligned(4)));
using LaneBits = std::int32_t __attribute__((vector_size(32), may_alias));

#define ESPALIER_INLINE inline __attribute__((always_inline))

ESPALIER_INLINE void load(Lanes& lanes, const float* from) {
  lanes = *reinterpret_cast<const Lanes*>(from);
}
ESPALIER_INLINE void store(const Lanes& lanes, float* to) {
  *reinterpret_cast<Lanes*>(to) = lanes;
}

// kRows x (8 kVectors) results stay in registers while the depth is walked through once.
template <int kRows, int kVectors>
ESPALIER_INLINE void multiply_block(std::int64_t depth, const float* a, std::int64_t a_row, std::int64_t a_column,
                                    const float* b, std::int64_t b_stride, float* c, std::int64_t c_stride,
                                    bool is_accumulated) {
  Lanes sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      if (is_accumulated) {
        load(sum[i][v], c + i * c_stride + v * kTileLanes);
      } else {
        sum[i][v] = Lanes{};
      }
    }
  }
  for (std::int64_t d = 0; d < depth; ++d) {
    Lanes right[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      load(right[v], b + d * b_stride + v * kTileLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const float left = a[i * a_row + d * a_column];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        sum[i][v] += left * right[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      store(sum[i][v], c + i * c_stride + v * kTileLanes);
    }
  }
}

template <int kVectors>
ESPALIER_INLINE void multiply_columns(std::int64_t rows, std::int64_t depth, const TileOperand& a, const float* b,
                                      std::int64_t b_stride, float* c, std::int64_t c_stride, bool is_accumulated) {
  // 6 x 2 sums, 2 of b and 1 of a fill the 16 registers of AVX2
  const std::int64_t whole = rows / 6 * 6;
  for (std::int64_t i = 0; i < whole; i += 6) {
    multiply_block<6, kVectors>(depth, a.data + i * a.row_stride, a.row_stride, a.column_stride, b, b_stride,
                                c + i * c_stride, c_stride, is_accumulated);
  }
  const float* a_rest = a.data + whole * a.row_stride;
  float* c_rest = c + whole * c_stride;
  switch (rows - whole) {
    case 1:
      multiply_block<1, kVectors>(depth, a_rest, a.row_stride, a.column_stride, b, b_stride, c_rest, c_stride,
                                  is_accumulated);
      break;
    case 2:
      multiply_block<2, kVectors>(depth, a_rest, a.row_stride, a.column_stride, b, b_stride, c_rest, c_stride,
                                  is_accumulated);
      break;
    case 3:
      multiply_block<3, kVectors>(depth, a_rest, a.row_stride, a.column_stride, b, b_stride, c_rest, c_stride,
                                  is_accumulated);
      break;
    case 4:
      multiply_block<4, kVectors>(depth, a_rest, a.row_stride, a.column_stride, b, b_stride, c_rest, c_stride,
                                  is_accumulated);
      break;
    case 5:
      multiply_block<5, kVectors>(depth, a_rest, a.row_stride, a.column_stride, b, b_stride, c_rest, c_stride,
                                  is_accumulated);
      break;
    default:
      break;
  }
}

// x = exp(x) for x <= 0 or NaN, to 2 units in the last place; 0 below -87, where floats turn denormal. Cephes'
// polynomial.
ESPALIER_INLINE void exponentiate(Lanes& x) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const LaneBits is_tiny = x < -87.0F;
  const Lanes shifted = x * 1.44269504F + kRound;
  const Lanes whole = shifted - kRound;
  const Lanes rest = (x - whole * 0.693359375F) - whole * -2.12194440e-4F;
  Lanes series = rest * 1.9875691500e-4F + 1.3981999507e-3F;
  series = series * rest + 8.3334519073e-3F;
  series = series * rest + 4.1665795894e-2F;
  series = series * rest + 1.6666665459e-1F;
  series = series * rest + 5.0000001201e-1F;
  series = series * (rest * rest) + rest + 1.0F;
  const LaneBits exponent = (reinterpret_cast<const LaneBits&>(shifted) << 23) + 0x3F800000;
  const Lanes power = series * reinterpret_cast<const Lanes&>(exponent);
  const LaneBits bits = reinterpret_cast<const LaneBits&>(power) & ~is_tiny;
  x = reinterpret_cast<const Lanes&>(bits);
}

ESPALIER_INLINE void drop(Lanes& x, const std::uint32_t* keep) {
  const auto bits = reinterpret_cast<const LanesAnywhere&>(x) & *reinterpret_cast<const LanesAnywhere*>(keep);
  x = reinterpret_cast<const Lanes&>(bits);
}

ESPALIER_INLINE float sum_of(const Lanes& lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// Leaves in mask.bias_row what is added to row i of the scores: the bias, and -infinity where nothing may be seen.
ESPALIER_INLINE void fill_bias_row(const TileMask& mask, std::int64_t i, std::int64_t columns) {
  if (i > 0 && mask.bias_row_stride == 0 && !mask.is_causal) {
    return;
  }
  const std::int64_t visible = mask.is_causal ? std::min(mask.num_visible + i, mask.num_keys) : mask.num_keys;
  if (mask.bias != nullptr) {
    std::copy_n(mask.bias + i * mask.bias_row_stride, visible, mask.bias_row);
  } else {
    std::fill_n(mask.bias_row, visible, 0.0F);
  }
  std::fill(mask.bias_row + visible, mask.bias_row + columns, -std::numeric_limits<float>::infinity());
}

}  // namespace

ESPALIER_TARGET_CLONES
void multiply_tile(std::int64_t rows, std::int64_t columns, std::int64_t depth, const TileOperand& a, const float* b,
                   std::int64_t b_stride, float* c, std::int64_t c_stride, bool is_accumulated) {
  std::int64_t j = 0;
  for (; j + 2 * kTileLanes <= columns; j += 2 * kTileLanes) {
    multiply_columns<2>(rows, depth, a, b + j, b_stride, c + j, c_stride, is_accumulated);
  }
  if (j < columns) {
    multiply_columns<1>(rows, depth, a, b + j, b_stride, c + j, c_stride, is_accumulated);
  }
}

ESPALIER_TARGET_CLONES
void softmax_tile(std::int64_t rows, std::int64_t columns, float* scores, const TileMask& mask, float* inverse_sum,
                  float* log_sum_exp) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (std::int64_t i = 0; i < rows; ++i) {
    float* row = scores + i * columns;
    fill_bias_row(mask, i, columns);
    Lanes highest = Lanes{} - kInfinity;
    for (std::int64_t j = 0; j < columns; j += kTileLanes) {
      Lanes x, bias;
      load(x, row + j);
      load(bias, mask.bias_row + j);
      x += bias;
      // a NaN is never the smaller one: a row of NaN must not look like a row without keys
      highest = x < highest ? highest : x;
      store(x, row + j);
    }
    float top = highest[0];
    for (int lane = 1; lane < kTileLanes; ++lane) {
      top = highest[lane] < top ? top : highest[lane];
    }
    if (top == -kInfinity) {
      std::fill_n(row, columns, 0.0F);
      inverse_sum[i] = 0;
      log_sum_exp[i] = kInfinity;
      continue;
    }
    Lanes sums{};
    const std::uint32_t* keep = mask.keep != nullptr ? mask.keep + i * mask.keep_row_stride : nullptr;
    for (std::int64_t j = 0; j < columns; j += kTileLanes) {
      Lanes x;
      load(x, row + j);
      x -= top;
      exponentiate(x);
      sums += x;
      if (keep != nullptr) {
        drop(x, keep + j);
      }
      store(x, row + j);
    }
    const float sum = sum_of(sums);
    inverse_sum[i] = 1.0F / sum;
    log_sum_exp[i] = top + std::log(sum);
  }
}

ESPALIER_TARGET_CLONES
void softmax_gradient_tile(std::int64_t rows, std::int64_t columns, float* scores, float* gradient,
                           const TileMask& mask, const float* log_sum_exp, float* weights) {
  for (std::int64_t i = 0; i < rows; ++i) {
    float* row = scores + i * columns;
    float* gradient_row = gradient + i * columns;
    fill_bias_row(mask, i, columns);
    const std::uint32_t* keep = mask.keep != nullptr ? mask.keep + i * mask.keep_row_stride : nullptr;
    Lanes sums{};
    for (std::int64_t j = 0; j < columns; j += kTileLanes) {
      Lanes x, bias, grad;
      load(x, row + j);
      load(bias, mask.bias_row + j);
      load(grad, gradient_row + j);
      x = x + bias - log_sum_exp[i];
      exponentiate(x);
      store(x, weights + j);
      if (keep != nullptr) {
        drop(grad, keep + j);
      }
      sums += x * grad;
      store(grad, gradient_row + j);
      if (keep != nullptr) {
        drop(x, keep + j);
      }
      store(x, row + j);
    }
    const float mean = sum_of(sums);
    for (std::int64_t j = 0; j < columns; j += kTileLanes) {
      Lanes x, grad;
      load(x, weights + j);
      load(grad, gradient_row + j);
      grad = x * (grad - mean);
      store(grad, gradient_row + j);
    }
  }
}

}  // namespace espalier::model
