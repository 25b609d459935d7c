// SPDX-License-Identifier: Apache-2.0
// Arithmetic on one tile of attention scores, in floats that lie in cache: small matrix products and the softmax with
// its gradient, with mask and dropout. Rows are padded to a multiple of kTileLanes, so that no loop has a remainder.
#pragma once

#include <cstdint>

namespace espalier::model {

constexpr std::int64_t kTileLanes = 8;
constexpr std::int64_t kMaxTileRows = 64;

/// Scores are in base 2: whoever makes them multiplies by log2(e), so that the softmax takes powers of 2, which are
/// cheaper.
constexpr float kLog2E = 1.44269504F;

constexpr std::int64_t padded_to_lanes(std::int64_t count) {
  return (count + kTileLanes - 1) / kTileLanes * kTileLanes;
}

/// A matrix whose element (i, j) is data[i * row_stride + j * column_stride].
struct TileOperand {
  const float* data;
  std::int64_t row_stride;
  std::int64_t column_stride;
};

/// c [rows, columns] = (or, with is_accumulated, +=) a [rows, depth] * b [depth, columns]; b and c row-major with the
/// given strides. The order of the sum over depth is ascending, whatever the sizes. Requires: columns, b_stride and
/// c_stride multiples of kTileLanes; b and c 32-byte aligned.
void multiply_tile(std::int64_t rows, std::int64_t columns, std::int64_t depth, const TileOperand& a, const float* b,
                   std::int64_t b_stride, float* c, std::int64_t c_stride, bool is_accumulated);

/// What is laid over the scores of a tile before and after the softmax.
struct TileMask {
  const float* bias;             ///< of the tile's first row, or null; in base e
  std::int64_t bias_row_stride;  ///< 0: one row for all
  const float* key_bias;         ///< one row for the whole tile, or null; in base e
  std::int64_t num_keys;         ///< columns from here on are padding
  std::int64_t num_visible;      ///< keys that the first row may see; one more for each further row if is_causal
  bool is_causal;
  const std::uint32_t* keep;  ///< dropout, all ones or 0, of the tile's first row, or null; readable to the padded end
  std::int64_t keep_row_stride;
  float* bias_row;  ///< scratch of one padded row
};

/// In: scores [rows, columns]. Out: 2^(score + bias - max) with dropout applied (unscaled), each row's 1 / sum before
/// dropout, and log-sum-exp (base 2). A row that sees no key has weights 0, inverse sum 0 and log-sum-exp +infinity.
void softmax_tile(std::int64_t rows, std::int64_t columns, float* scores, const TileMask& mask, float* inverse_sum,
                  float* log_sum_exp);

/// In: scores and the gradient of the weights after dropout. Out: the weights after dropout (unscaled) in `scores`, the
/// gradient of the exponent (in base e) in `gradient`. Both functions require: rows <= kMaxTileRows.
void softmax_gradient_tile(std::int64_t rows, std::int64_t columns, float* scores, float* gradient,
                           const TileMask& mask, const float* log_sum_exp);

}  // namespace espalier::model
