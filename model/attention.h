// SPDX-License-Identifier: Apache-2.0
// Scaled dot-product attention that never keeps a score matrix between forward and backward.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace espalier::model {

// B batch, H heads, L query tokens, S key tokens, W head width
struct AttentionOptions {
  double scale = 1.0;
  bool is_causal = false;         ///< query l sees keys 0 ... l
  double dropout = 0.0;           ///< on the attention weights
  std::uint64_t dropout_key = 0;  ///< element index = index in the contiguous [B, H, L, S] weights
  /// Added to the scores beside the bias, the same for every query and head: [B, 1, 1, S], never differentiated. A
  /// padding mask goes here, so that a position bias [1, H, L, S] is never spread over the batch.
  at::Tensor key_bias;
};

/// softmax(scale * q k^T + bias + key_bias) v, with dropout on the weights. q [B,H,L,W], k and v [B,H,S,W] (any
/// strides, one dtype); bias undefined or broadcastable to [B,H,L,S], float. Returns [B,H,L,W] whose memory is
/// [B,L,H,W]: out.transpose(1, 2) is contiguous. Only a bias of -infinity hides a key; a finite one, however low, is a
/// number like any other (rows of it alone come out uniform). A query row whose keys are all hidden gives zeros and
/// zero gradients, never NaN.
///
/// On the CPU (float, bfloat16, half) an own kernel; elsewhere at::scaled_dot_product_attention where that keeps no
/// scores, and where it would (dropout, a bias that needs a gradient) the same recomputation in ATen operations, piece
/// by piece. What is kept is q, k, v, the bias and one log-sum-exp per row (Dao et al., FlashAttention, NeurIPS 2022,
/// section 3.1), not even the output. On the CPU the result does not depend on the number of threads, nor on whether
/// gradients are wanted. Once differentiable.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                     const AttentionOptions& options);

/// The slow, obvious twin that keeps everything: oracle of the tests.
at::Tensor attention_reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                               const AttentionOptions& options);

}  // namespace espalier::model
