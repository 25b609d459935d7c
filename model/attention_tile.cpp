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

// x = 2^x for x < 127 or NaN, to 2 units in the last place; 0 below -126, where floats turn denormal. The polynomial
// meets 2^x on [-1/2, 1/2] to 2e-9 and is summed in pairs: the chain of dependent steps, not their number, limits the
// speed.
ESPALIER_INLINE void exponentiate(Lanes& x) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const LaneBits is_tiny = x < -126.0F;
  const Lanes shifted = x + kRound;
  const Lanes rest = x - (shifted - kRound);
  const Lanes square = rest * rest;
  const Lanes low = (rest * 5.550356954e-02F + 2.402265072e-01F) * square + (rest * 6.931471825e-01F + 1.0F);
  const Lanes high = square * 1.546144777e-04F + (rest * 1.339086681e-03F + 9.618056938e-03F);
  const Lanes series = high * (square * square) + low;
  // Unsigned: what overflows for a tiny x is thrown away below.
  const LanesAnywhere exponent = (reinterpret_cast<const LanesAnywhere&>(shifted) << 23) + 0x3F800000U;
  const Lanes power = series * reinterpret_cast<const Lanes&>(exponent);
  const LaneBits bits = reinterpret_cast<const LaneBits&>(power) & ~is_tiny;
  x = reinterpret_cast<const Lanes&>(bits);
}

ESPALIER_INLINE void drop(Lanes& x, const std::uint32_t* keep) {
  const auto bits = reinterpret_cast<const LanesAnywhere&>(x) & *reinterpret_cast<const LanesAnywhere*>(keep);
  x = reinterpret_cast<const Lanes&>(bits);
}

ESPALIER_INLINE float sum_of(const float* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// a NaN is never the smaller one: a row of NaN must not look like a row without keys
ESPALIER_INLINE float highest_of(const float* lanes) {
  float highest = lanes[0];
  for (int lane = 1; lane < kTileLanes; ++lane) {
    highest = lanes[lane] < highest ? highest : lanes[lane];
  }
  return highest;
}

ESPALIER_INLINE const std::uint32_t* keep_row(const TileMask& mask, std::int64_t i) {
  return mask.keep != nullptr ? mask.keep + i * mask.keep_row_stride : nullptr;
}

// Leaves in mask.bias_row what is added to row i of the scores: the bias in base 2, and -infinity where nothing may be
// seen.
ESPALIER_INLINE void fill_bias_row(const TileMask& mask, std::int64_t i, std::int64_t columns) {
  if (i > 0 && mask.bias_row_stride == 0 && !mask.is_causal) {
    return;
  }
  const std::int64_t visible = mask.is_causal ? std::min(mask.num_visible + i, mask.num_keys) : mask.num_keys;
  // a finite bias stays finite, however low: only -infinity hides a key
  const auto in_base_2 = [](float bias) {
    const float converted = bias * kLog2E;
    return converted < std::numeric_limits<float>::lowest() ? bias : converted;
  };
  const float* bias = mask.bias == nullptr ? nullptr : mask.bias + i * mask.bias_row_stride;
  if (bias != nullptr && mask.key_bias != nullptr) {
    for (std::int64_t j = 0; j < visible; ++j) {
      mask.bias_row[j] = in_base_2(bias[j] + mask.key_bias[j]);
    }
  } else if (bias != nullptr || mask.key_bias != nullptr) {
    const float* only = bias != nullptr ? bias : mask.key_bias;
    for (std::int64_t j = 0; j < visible; ++j) {
      mask.bias_row[j] = in_base_2(only[j]);
    }
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

// Both functions below go through the whole tile in phases: what a row needs to know of itself (maximum, sum) is
// gathered in one phase and used in the next, since a short row would otherwise wait for its own result.

ESPALIER_TARGET_CLONES
void softmax_tile(std::int64_t rows, std::int64_t columns, float* scores, const TileMask& mask, float* inverse_sum,
                  float* log_sum_exp) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  alignas(32) float lanes[kMaxTileRows * kTileLanes];
  for (std::int64_t i = 0; i < rows; ++i) {
    float* row = scores + i * columns;
    fill_bias_row(mask, i, columns);
    Lanes highest = Lanes{} - kInfinity;
    for (std::int64_t j = 0; j < columns; j += kTileLanes) {
      Lanes x, bias;
      load(x, row + j);
      load(bias, mask.bias_row + j);
      x += bias;
      highest = x < highest ? highest : x;
      store(x, row + j);
    }
    store(highest, lanes + i * kTileLanes);
  }
  float* top = inverse_sum;
  for (std::int64_t i = 0; i < rows; ++i) {
    top[i] = highest_of(lanes + i * kTileLanes);
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    float* row = scores + i * columns;
    const std::uint32_t* keep = keep_row(mask, i);
    // -infinity - +infinity: the weights of a row without keys become 0
    float subtracted = top[i];
    if (top[i] == -kInfinity) {
      subtracted = kInfinity;
    }
    Lanes sums{};
    for (std::int64_t j = 0; j < columns; j += kTileLanes) {
      Lanes x;
      load(x, row + j);
      x -= subtracted;
      exponentiate(x);
      sums += x;
      if (keep != nullptr) {
        drop(x, keep + j);
      }
      store(x, row + j);
    }
    store(sums, lanes + i * kTileLanes);
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    const bool is_blind = top[i] == -kInfinity;
    const float sum = sum_of(lanes + i * kTileLanes);
    log_sum_exp[i] = is_blind ? kInfinity : top[i] + std::log2(sum);
    inverse_sum[i] = is_blind ? 0.0F : 1.0F / sum;
  }
}

ESPALIER_TARGET_CLONES
void softmax_gradient_tile(std::int64_t rows, std::int64_t columns, float* scores, float* gradient,
                           const TileMask& mask, const float* log_sum_exp) {
  alignas(32) float lanes[kMaxTileRows * kTileLanes];
  for (std::int64_t i = 0; i < rows; ++i) {
    float* row = scores + i * columns;
    float* gradient_row = gradient + i * columns;
    const std::uint32_t* keep = keep_row(mask, i);
    fill_bias_row(mask, i, columns);
    const float subtracted = log_sum_exp[i];
    Lanes sums{};
    for (std::int64_t j = 0; j < columns; j += kTileLanes) {
      Lanes x, bias, grad;
      load(x, row + j);
      load(bias, mask.bias_row + j);
      load(grad, gradient_row + j);
      x = x + bias - subtracted;
      exponentiate(x);
      store(x, row + j);
      if (keep != nullptr) {
        drop(grad, keep + j);
        store(grad, gradient_row + j);
      }
      sums += x * grad;
    }
    store(sums, lanes + i * kTileLanes);
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    float* row = scores + i * columns;
    float* gradient_row = gradient + i * columns;
    const std::uint32_t* keep = keep_row(mask, i);
    const float mean = sum_of(lanes + i * kTileLanes);
    for (std::int64_t j = 0; j < columns; j += kTileLanes) {
      Lanes x, grad;
      load(x, row + j);
      load(grad, gradient_row + j);
      grad = x * (grad - mean);
      store(grad, gradient_row + j);
      if (keep != nullptr) {
        drop(x, keep + j);
        store(x, row + j);
      }
    }
  }
}

}  // namespace espalier::model
