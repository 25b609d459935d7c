// SPDX-License-Identifier: Apache-2.0
// Attention on the CPU, one (batch, head) at a time: the scores exist only as a tile of query rows in cache, with bias,
// mask and dropout applied there; the backward computes them again from q, k and the log-sum-exp of each row. (Dao et
// al., FlashAttention, NeurIPS 2022; here a tile spans all keys, so that no softmax is ever rescaled.) B batch, H
// heads, L query tokens, S key tokens, W head width
#pragma once

#include <cstdint>

#include "model/dropout_kernel.h"

namespace espalier::model {

/// [B, H, rows, W] in memory; the last dimension has stride 1. Null data: not given, or not wanted.
template <typename T>
struct HeadRows {
  T* data = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;
};

struct AttentionProblem {
  std::int64_t batch = 0, heads = 0, queries = 0, keys = 0, width = 0;
  float scale = 1;
  bool is_causal = false;
  DropoutRule dropout;             ///< threshold 0: none
  HeadRows<const float> bias;      ///< [B, H, L, S]; strides 0 where it is broadcast
  HeadRows<const float> key_bias;  ///< the same, added to it; constant over heads and queries
};

/// Where the gradient of the bias is summed up: contiguous [batches, H, rows, S], where batches is 1 or B, and rows is
/// 1 or L.
struct BiasGradient {
  float* data = nullptr;  ///< null: not wanted. Zeros at the start.
  std::int64_t batches = 0, rows = 0;
};

/// log_sum_exp: [B, H, L] contiguous, in base 2; +infinity for a row that sees no key, whose output is 0.
/// The result does not depend on the number of threads. T: float, c10::BFloat16, c10::Half; sums are in float.
template <typename T>
void attention_forward(const AttentionProblem& problem, const HeadRows<const T>& q, const HeadRows<const T>& k,
                       const HeadRows<const T>& v, const HeadRows<T>& out, float* log_sum_exp);

/// The result does not depend on the number of threads: one task owns all it writes, and the gradient of a bias that is
/// broadcast over the batch is summed in ascending order.
template <typename T>
void attention_backward(const AttentionProblem& problem, const HeadRows<const T>& q, const HeadRows<const T>& k,
                        const HeadRows<const T>& v, const HeadRows<const T>& grad_out, const float* log_sum_exp,
                        const HeadRows<T>& grad_q, const HeadRows<T>& grad_k, const HeadRows<T>& grad_v,
                        const BiasGradient& grad_bias);

}  // namespace espalier::model
