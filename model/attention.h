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
  /// padding mask goes here, so that a position bias [1, H, L, S] need not be spread over the batch.
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
/// by piece. What is kept is q, k, v, both biases as they came and one log-sum-exp per row (Dao et al., FlashAttention,
/// NeurIPS 2022, section 3.1), not even the output. at::scaled_dot_product_attention alone takes one mask in q's type:
/// the sum of both biases and of the causal one, [B, H, L, S] where they differ in all of these, made by every call and
/// kept where q, k or v need a gradient. On the CPU the result does not depend on the number of threads, nor on whether
/// gradients are wanted. Once differentiable.
/// Throws: InternalError for other shapes or types, and for a backward that is to be differentiated itself.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                     const AttentionOptions& options);

/// The slow, obvious twin that keeps everything: oracle of the tests, and what blocks run whose spec keeps_scores. Its
/// dropout mask is drawn on the host, element after element.
at::Tensor attention_reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                               const AttentionOptions& options);

}  // namespace espalier::model
