// SPDX-License-Identifier: Apache-2.0
// A linear map of a normed state that keeps the state alone: the normed one is made again in the backward.
#pragma once

#include "model/linear.h"

namespace espalier::peft {

/// linear(norm(x)); x [..., D] -> [..., out]. Equal to the two in sequence, forward and gradients; keeps x, mean and
/// deviation. Weights are cast to x's type. Requires: a LayerNorm.
at::Tensor normed_linear(const at::Tensor& x, const model::Norm& norm, const model::Linear& linear);

}  // namespace espalier::peft
