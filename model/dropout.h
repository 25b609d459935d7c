// SPDX-License-Identifier: Apache-2.0
// Counter-based dropout: element i of the (contiguous) tensor draws word i % 4 or the like of a fixed Philox counter under `key`, so
// the mask is the same for any layout, thread count and device, and is drawn again in the backward instead of stored.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace espalier::model {

/// y = x * mask / (1 - probability), any shape; differentiable; returns x itself when probability is 0.
/// Requires: 0 <= probability < 1.
at::Tensor dropout(const at::Tensor& x, double probability, std::uint64_t key);

/// y = residual + dropout(x): one pass over memory instead of two. Same mask as dropout(x). Differentiable in both.
at::Tensor dropout_add(const at::Tensor& x, const at::Tensor& residual, double probability, std::uint64_t key);

/// Keep (1) or drop (0) as drawn for the first `numel` elements; uint8 on the CPU: the oracle that tests and kernels share.
/// The keep decision of an element is: word >= floor(probability * 2^32).
at::Tensor dropout_mask(std::int64_t numel, double probability, std::uint64_t key);

}  // namespace espalier::model
