// SPDX-License-Identifier: Apache-2.0
// Attention in ATen operations, for every device and dtype that the CPU kernel does not serve: forward and backward
// walk over pieces of the [B, H, L, S] weights, none of which outlives its turn.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/attention.h"

namespace espalier::model {

/// The two biases as one, to be added to the scores; undefined where neither is there.
at::Tensor sum_of_biases(const at::Tensor& bias, const at::Tensor& key_bias);

/// Weights of one piece: enough to fill a device, 64 MiB in float.
constexpr std::int64_t kPieceElements = std::int64_t{16} << 20;

struct AttentionResult {
  at::Tensor out;          ///< [B, H, L, W] in memory [B, L, H, W]
  at::Tensor log_sum_exp;  ///< [B, H, L]; +infinity for a row that sees no key
};

struct AttentionGradients {
  at::Tensor q, k, v, bias;  ///< undefined where not wanted
};

/// bias: undefined, or four dimensions, each 1 or that of [B, H, L, S]. The options' key bias is added to it piece by
/// piece, so that the sum, [B, H, L, S] of a bias for every batch, is never there whole.
AttentionResult attention_forward_in_pieces(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                            const at::Tensor& bias, const AttentionOptions& options,
                                            std::int64_t piece_elements = kPieceElements);

/// The gradient of the bias has the bias's shape; it is summed in ascending order.
AttentionGradients attention_backward_in_pieces(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                const at::Tensor& bias, const AttentionOptions& options,
                                                const at::Tensor& log_sum_exp, const at::Tensor& grad_out,
                                                bool is_bias_wanted, std::int64_t piece_elements = kPieceElements);

}  // namespace espalier::model
