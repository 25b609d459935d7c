// SPDX-License-Identifier: Apache-2.0
// Scaled dot-product attention that never keeps a score matrix between forward and backward.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace espalier::model {

// B batch, H heads, L query tokens, S key tokens, W head width
struct AttentionOptions {
  double scale = 1.0;
  bool is_causal = false;
  double dropout = 0.0;       ///< on the attention weights
  std::uint64_t dropout_key = 0;  ///< element index = index in the contiguous [B, H, L, S] weights
};

/// softmax(scale * q k^T + bias) v, with dropout on the weights. q [B,H,L,W], k and v [B,H,S,W] (any strides);
/// bias undefined or broadcastable to [B,H,L,S], float, -inf masks. Returns [B,H,L,W]; the memory layout may be [B,L,H,W].
/// A query row whose keys are all masked gives zeros, never NaN.
/// Takes at::scaled_dot_product_attention where that keeps no scores; otherwise (dropout, a bias that needs a gradient) an own
/// autograd function that keeps q, k, v, the output and one log-sum-exp per row, and recomputes (Dao et al., FlashAttention,
/// NeurIPS 2022, section 3.1: softmax statistics instead of the matrix).
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                     const AttentionOptions& options);

/// The slow, obvious twin that keeps everything: oracle of the tests.
at::Tensor attention_reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                               const AttentionOptions& options);

}  // namespace espalier::model
