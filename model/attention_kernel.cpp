// SPDX-License-Identifier: Apache-2.0
#include "model/attention_kernel.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <memory>
#include <new>

#include "model/attention_tile.h"
#include "model/parallel.h"

namespace espalier::model {
namespace {

// 64 KiB of scores a tile: with the operands of one head it stays in a second-level cache.
constexpr std::int64_t kTileElements = 16384;

// Memory of one thread for one call: handed out in 64-byte aligned pieces, freed together.
class Scratch {
 public:
  explicit Scratch(std::int64_t num_floats)
      : data_(static_cast<float*>(::operator new(static_cast<std::size_t>(num_floats) * sizeof(float), kAlignment))),
        next_(data_.get()) {}
  float* take(std::int64_t num_floats) {
    float* taken = next_;
    next_ += room_for(num_floats);
    return taken;
  }
  static constexpr std::int64_t room_for(std::int64_t num_floats) { return (num_floats + 15) / 16 * 16; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(float* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<float, Free> data_;
  float* next_;
};

template <typename T>
T* row_of(const HeadRows<T>& rows, std::int64_t b, std::int64_t h, std::int64_t row) {
  return rows.data + b * rows.batch_stride + h * rows.head_stride + row * rows.row_stride;
}

// to [count, padded width] = factor * from [count, width]
template <typename T>
void pack(const T* from, std::int64_t stride, std::int64_t count, std::int64_t width, float factor, float* to) {
  const std::int64_t padded = padded_to_lanes(width);
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t w = 0; w < width; ++w) {
      to[i * padded + w] = factor * static_cast<float>(from[i * stride + w]);
    }
    std::fill(to + i * padded + width, to + (i + 1) * padded, 0.0F);
  }
}

// to [width, padded count] = from [count, padded width], transposed; the padding becomes 0
void pack_transposed(const float* from, std::int64_t count, std::int64_t width, float* to) {
  const std::int64_t stride = padded_to_lanes(width), padded = padded_to_lanes(count);
  for (std::int64_t i = 0; i < padded; i += kTileLanes) {
    const std::int64_t lanes = std::min(kTileLanes, count - i);
    for (std::int64_t w = 0; w < width; ++w) {
      float* lane = to + w * padded + i;
      for (std::int64_t n = 0; n < lanes; ++n) {
        lane[n] = from[(i + n) * stride + w];
      }
      std::fill(lane + lanes, lane + kTileLanes, 0.0F);
    }
  }
}

// from [count, padded width] to rows of T; row i is multiplied by factors[i], or all by `factor`
template <typename T>
void unpack(const float* from, std::int64_t count, std::int64_t width, float factor, const float* factors, T* to,
            std::int64_t stride) {
  const std::int64_t padded = padded_to_lanes(width);
  for (std::int64_t i = 0; i < count; ++i) {
    const float row_factor = factors != nullptr ? factor * factors[i] : factor;
    for (std::int64_t w = 0; w < width; ++w) {
      to[i * stride + w] = static_cast<T>(row_factor * from[i * padded + w]);
    }
  }
}

// What both directions share: the cutting of the queries into tiles, and each tile's mask.
class Tiling {
 public:
  explicit Tiling(const AttentionProblem& problem)
      : problem_(problem),
        keys_(padded_to_lanes(problem.keys)),
        width_(padded_to_lanes(problem.width)),
        rows_(std::min(std::clamp<std::int64_t>(kTileElements / keys_, kTileLanes, kMaxTileRows), problem.queries)),
        // a tile's elements begin and end inside a block of the dropout mapping; the last row is read to its padded end
        keep_blocks_(problem.dropout.threshold == 0 ? 0 : (rows_ * problem.keys + kTileLanes) / kDropoutBlock + 2) {}

  [[nodiscard]] std::int64_t padded_keys() const { return keys_; }
  [[nodiscard]] std::int64_t padded_width() const { return width_; }
  [[nodiscard]] std::int64_t max_rows() const { return rows_; }
  [[nodiscard]] std::int64_t num_tiles() const { return (problem_.queries + rows_ - 1) / rows_; }
  [[nodiscard]] std::int64_t rows(std::int64_t first_row) const {
    return std::min(rows_, problem_.queries - first_row);
  }
  /// Padded number of keys that any row of the tile sees.
  [[nodiscard]] std::int64_t columns(std::int64_t first_row) const {
    return problem_.is_causal ? std::min(padded_to_lanes(first_row + rows(first_row)), keys_) : keys_;
  }
  [[nodiscard]] std::int64_t mask_room() const {
    return Scratch::room_for(keys_) + Scratch::room_for(keep_blocks_ * kDropoutBlock);
  }
  struct MaskScratch {
    float* bias_row;
    std::uint32_t* keep;
  };
  [[nodiscard]] MaskScratch take_mask(Scratch& scratch) const {
    float* bias_row = scratch.take(keys_);
    return {bias_row, reinterpret_cast<std::uint32_t*>(scratch.take(keep_blocks_ * kDropoutBlock))};
  }

  [[nodiscard]] TileMask mask(std::int64_t b, std::int64_t h, std::int64_t first_row,
                              const MaskScratch& scratch) const {
    TileMask mask{};
    if (problem_.bias.data != nullptr) {
      mask.bias = row_of(problem_.bias, b, h, first_row);
      mask.bias_row_stride = problem_.bias.row_stride;
    }
    if (problem_.key_bias.data != nullptr) {
      mask.key_bias = row_of(problem_.key_bias, b, h, first_row);
    }
    mask.num_keys = problem_.keys;
    mask.num_visible = first_row + 1;
    mask.is_causal = problem_.is_causal;
    mask.bias_row = scratch.bias_row;
    if (problem_.dropout.threshold != 0) {
      mask.keep = draw(((b * problem_.heads + h) * problem_.queries + first_row) * problem_.keys, rows(first_row),
                       std::min(columns(first_row), problem_.keys), scratch.keep);
      mask.keep_row_stride = problem_.keys;
    }
    return mask;
  }

 private:
  // Draws the blocks that hold the first `columns` elements of each row, and no others: a causal tile sees few of its
  // keys.
  const std::uint32_t* draw(std::int64_t first_element, std::int64_t rows, std::int64_t columns,
                            std::uint32_t* keep) const {
    const std::int64_t first_block = first_element / kDropoutBlock;
    std::int64_t next = first_block;
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t row = first_element + i * problem_.keys;
      const std::int64_t begin = std::max(next, row / kDropoutBlock);
      const std::int64_t end = (row + columns - 1) / kDropoutBlock + 1;
      if (begin < end) {
        draw_dropout_blocks(problem_.dropout, begin, end - begin, keep + (begin - first_block) * kDropoutBlock);
        next = end;
      }
    }
    return keep + first_element % kDropoutBlock;
  }

  const AttentionProblem& problem_;
  std::int64_t keys_, width_, rows_, keep_blocks_;
};

void add_bias_gradient(const float* gradient, std::int64_t stride, std::int64_t rows, std::int64_t columns, float* to,
                       std::int64_t to_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      to[i * to_stride + j] += gradient[i * stride + j];
    }
  }
}

// The backward of one (batch, head) after another, in memory that is taken once.
template <typename T>
class BackwardWorker {
 public:
  BackwardWorker(const AttentionProblem& problem, const Tiling& tiling)
      : problem_(problem), tiling_(tiling), scratch_(room()) {
    const std::int64_t keys = tiling.padded_keys(), width = tiling.padded_width(), rows = tiling.max_rows();
    key_ = scratch_.take(keys * width);
    key_transposed_ = scratch_.take(keys * width);
    value_transposed_ = scratch_.take(keys * width);
    grad_key_ = scratch_.take(keys * width);
    grad_value_ = scratch_.take(keys * width);
    query_ = scratch_.take(rows * width);
    grad_out_ = scratch_.take(rows * width);
    grad_query_ = scratch_.take(rows * width);
    scores_ = scratch_.take(rows * keys);
    gradient_ = scratch_.take(rows * keys);
    mask_ = tiling.take_mask(scratch_);
  }

  void run(std::int64_t b, std::int64_t h, const HeadRows<const T>& q, const HeadRows<const T>& k,
           const HeadRows<const T>& v, const HeadRows<const T>& grad_out, const float* log_sum_exp,
           const HeadRows<T>& grad_q, const HeadRows<T>& grad_k, const HeadRows<T>& grad_v,
           const BiasGradient& grad_bias) {
    const std::int64_t keys = problem_.keys, width = problem_.width, padded = tiling_.padded_width();
    pack(row_of(v, b, h, 0), v.row_stride, keys, width, 1.0F, key_);
    pack_transposed(key_, keys, width, value_transposed_);
    pack(row_of(k, b, h, 0), k.row_stride, keys, width, 1.0F, key_);
    pack_transposed(key_, keys, width, key_transposed_);
    std::fill_n(grad_key_, keys * padded, 0.0F);
    std::fill_n(grad_value_, keys * padded, 0.0F);
    for (std::int64_t row = 0; row < problem_.queries; row += tiling_.max_rows()) {
      const std::int64_t rows = tiling_.rows(row), columns = tiling_.columns(row);
      const std::int64_t visible = std::min(columns, keys), key_stride = tiling_.padded_keys();
      pack(row_of(q, b, h, row), q.row_stride, rows, width, problem_.scale * kLog2E, query_);
      pack(row_of(grad_out, b, h, row), grad_out.row_stride, rows, width, problem_.dropout.scale, grad_out_);
      multiply_tile(rows, columns, width, {query_, padded, 1}, key_transposed_, key_stride, scores_, columns, false);
      multiply_tile(rows, columns, width, {grad_out_, padded, 1}, value_transposed_, key_stride, gradient_, columns,
                    false);
      softmax_gradient_tile(rows, columns, scores_, gradient_, tiling_.mask(b, h, row, mask_),
                            log_sum_exp + (b * problem_.heads + h) * problem_.queries + row);
      if (grad_v.data != nullptr) {
        multiply_tile(visible, padded, rows, {scores_, 1, columns}, grad_out_, padded, grad_value_, padded, true);
      }
      if (grad_k.data != nullptr) {
        multiply_tile(visible, padded, rows, {gradient_, 1, columns}, query_, padded, grad_key_, padded, true);
      }
      if (grad_q.data != nullptr) {
        multiply_tile(rows, padded, visible, {gradient_, columns, 1}, key_, padded, grad_query_, padded, false);
        unpack(grad_query_, rows, width, problem_.scale, nullptr, row_of(grad_q, b, h, row), grad_q.row_stride);
      }
      if (grad_bias.data != nullptr) {
        const std::int64_t head = (grad_bias.batches == 1 ? 0 : b) * problem_.heads + h;
        add_bias_gradient(gradient_, columns, rows, visible,
                          grad_bias.data + (head * grad_bias.rows + (grad_bias.rows == 1 ? 0 : row)) * keys,
                          grad_bias.rows == 1 ? 0 : keys);
      }
    }
    if (grad_k.data != nullptr) {
      unpack(grad_key_, keys, width, 1.0F / kLog2E, nullptr, row_of(grad_k, b, h, 0), grad_k.row_stride);
    }
    if (grad_v.data != nullptr) {
      unpack(grad_value_, keys, width, 1.0F, nullptr, row_of(grad_v, b, h, 0), grad_v.row_stride);
    }
  }

 private:
  [[nodiscard]] std::int64_t room() const {
    const std::int64_t keys = tiling_.padded_keys(), width = tiling_.padded_width(), rows = tiling_.max_rows();
    return 5 * Scratch::room_for(keys * width) + 3 * Scratch::room_for(rows * width) +
           2 * Scratch::room_for(rows * keys) + tiling_.mask_room();
  }

  const AttentionProblem& problem_;
  const Tiling& tiling_;
  Scratch scratch_;
  float *key_, *key_transposed_, *value_transposed_, *grad_key_, *grad_value_;  // [S, W], transposed [W, S]
  float *query_, *grad_out_, *grad_query_;                                      // [rows, W]
  float *scores_, *gradient_;                                                   // [rows, S]
  Tiling::MaskScratch mask_;
};

}  // namespace

template <typename T>
void attention_forward(const AttentionProblem& problem, const HeadRows<const T>& q, const HeadRows<const T>& k,
                       const HeadRows<const T>& v, const HeadRows<T>& out, float* log_sum_exp) {
  const Tiling tiling(problem);
  const std::int64_t keys = tiling.padded_keys(), width = tiling.padded_width(), max_rows = tiling.max_rows();
  const std::int64_t num_tiles = tiling.num_tiles();
  const std::int64_t room = 2 * Scratch::room_for(keys * width) + 2 * Scratch::room_for(max_rows * width) +
                            Scratch::room_for(max_rows * keys) + Scratch::room_for(max_rows) + tiling.mask_room();
  parallel_ranges(problem.batch * problem.heads * num_tiles, /*grain=*/1, [&](std::int64_t begin, std::int64_t end) {
    Scratch scratch(room);
    float* key_transposed = scratch.take(keys * width);
    float* value = scratch.take(keys * width);
    float* query = scratch.take(max_rows * width);
    float* result = scratch.take(max_rows * width);
    float* scores = scratch.take(max_rows * keys);
    float* inverse_sum = scratch.take(max_rows);
    const Tiling::MaskScratch mask = tiling.take_mask(scratch);
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t b = task / num_tiles / problem.heads, h = task / num_tiles % problem.heads;
      const std::int64_t row = task % num_tiles * max_rows;
      if (task == begin || row == 0) {
        pack(row_of(k, b, h, 0), k.row_stride, problem.keys, problem.width, 1.0F, value);
        pack_transposed(value, problem.keys, problem.width, key_transposed);
        pack(row_of(v, b, h, 0), v.row_stride, problem.keys, problem.width, 1.0F, value);
      }
      const std::int64_t rows = tiling.rows(row), columns = tiling.columns(row);
      pack(row_of(q, b, h, row), q.row_stride, rows, problem.width, problem.scale * kLog2E, query);
      multiply_tile(rows, columns, problem.width, {query, width, 1}, key_transposed, keys, scores, columns, false);
      softmax_tile(rows, columns, scores, tiling.mask(b, h, row, mask), inverse_sum,
                   log_sum_exp + (b * problem.heads + h) * problem.queries + row);
      multiply_tile(rows, width, std::min(columns, problem.keys), {scores, columns, 1}, value, width, result, width,
                    false);
      unpack(result, rows, problem.width, problem.dropout.scale, inverse_sum, row_of(out, b, h, row), out.row_stride);
    }
  });
}

template <typename T>
void attention_backward(const AttentionProblem& problem, const HeadRows<const T>& q, const HeadRows<const T>& k,
                        const HeadRows<const T>& v, const HeadRows<const T>& grad_out, const float* log_sum_exp,
                        const HeadRows<T>& grad_q, const HeadRows<T>& grad_k, const HeadRows<T>& grad_v,
                        const BiasGradient& grad_bias) {
  const Tiling tiling(problem);
  // A bias shared by the whole batch: a task walks through the batch for one head, so that no two tasks add to one
  // place.
  const std::int64_t batch_per_task = grad_bias.data != nullptr && grad_bias.batches == 1 ? problem.batch : 1;
  parallel_ranges(problem.batch * problem.heads / batch_per_task, /*grain=*/1,
                  [&](std::int64_t begin, std::int64_t end) {
                    BackwardWorker<T> worker(problem, tiling);
                    for (std::int64_t task = begin; task < end; ++task) {
                      const std::int64_t first_b = task / problem.heads, h = task % problem.heads;
                      for (std::int64_t b = first_b; b < first_b + batch_per_task; ++b) {
                        worker.run(b, h, q, k, v, grad_out, log_sum_exp, grad_q, grad_k, grad_v, grad_bias);
                      }
                    }
                  });
}

#define ESPALIER_INSTANTIATE_ATTENTION(T)                                                                          \
  template void attention_forward<T>(const AttentionProblem&, const HeadRows<const T>&, const HeadRows<const T>&,  \
                                     const HeadRows<const T>&, const HeadRows<T>&, float*);                        \
  template void attention_backward<T>(const AttentionProblem&, const HeadRows<const T>&, const HeadRows<const T>&, \
                                      const HeadRows<const T>&, const HeadRows<const T>&, const float*,            \
                                      const HeadRows<T>&, const HeadRows<T>&, const HeadRows<T>&,                  \
                                      const BiasGradient&);
ESPALIER_INSTANTIATE_ATTENTION(float)
ESPALIER_INSTANTIATE_ATTENTION(c10::BFloat16)
ESPALIER_INSTANTIATE_ATTENTION(c10::Half)

}  // namespace espalier::model
