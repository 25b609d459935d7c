// SPDX-License-Identifier: Apache-2.0
// Counter-based dropout: the keep decision of element i of the (contiguous) tensor is a pure function of the key and i
// (the mapping is in dropout_kernel.h), so the mask is the same for any layout, thread count and device, and is drawn
// again in the backward instead of stored.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/context.h"

namespace espalier::model {

/// y = x * mask / (1 - probability), any shape, float, bfloat16, half or double; differentiable, keeps nothing for the
/// backward. Returns x itself when probability is 0. A dropped element is 0 even where x is not finite. `first_element`
/// is the index that element 0 of x has in the mask: for a tensor that is worked on piece by piece. Requires: 0 <=
/// probability < 1.
at::Tensor dropout(const at::Tensor& x, double probability, std::uint64_t key, std::int64_t first_element = 0);

/// y = residual + dropout(x): one pass over memory instead of two. Same mask as dropout(x). Differentiable in both.
/// Requires: x and residual of one shape, dtype and device.
at::Tensor dropout_add(const at::Tensor& x, const at::Tensor& residual, double probability, std::uint64_t key);

/// dropout(x) and dropout_add(x, residual) at a place of a network. With seeds in the context every network of the
/// stack x [K, ...] has its own mask, the one that it has alone; an x without that dimension is read by all, whose
/// masks make it [K, ...].
at::Tensor dropout(const at::Tensor& x, double probability, const ForwardContext& context, const LayerPlace& place,
                   DropoutSite site);
at::Tensor dropout_add(const at::Tensor& x, const at::Tensor& residual, double probability,
                       const ForwardContext& context, const LayerPlace& place, DropoutSite site);

/// Keep (1) or drop (0) as drawn for the first `numel` elements; uint8 on the CPU: the oracle that tests and kernels
/// share. The keep decision of an element is: word >= floor(probability * 2^32).
at::Tensor dropout_mask(std::int64_t numel, double probability, std::uint64_t key);

}  // namespace espalier::model
