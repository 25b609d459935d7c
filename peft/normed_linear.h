// SPDX-License-Identifier: Apache-2.0
// A linear map of a normed state that keeps the state alone: the normed one is made again in the backward, and so is
// the state where low-rank terms lead to it from one that is kept anyway.
#pragma once

#include <vector>

#include "model/linear.h"

namespace espalier::peft {

/// narrow weight^T + bias. narrow [..., R], weight [D, R], bias [D] or undefined
struct LowRankTerm {
  at::Tensor narrow, weight, bias;
};

/// How a state can be made again, but for rounding: base [..., D] + the terms, in this order.
struct StateRecipe {
  at::Tensor base;
  std::vector<LowRankTerm> terms = {};
};

/// linear(norm(x)); x [..., D] -> [..., out]. Equal to the two in sequence, forward and gradients; keeps what `recipe`
/// makes x of (x itself: {x}), through which no gradient flows. Weights are cast to x's type; stacks of K networks'
/// weights as in model::Linear. Requires: a LayerNorm.
at::Tensor normed_linear(const at::Tensor& x, const StateRecipe& recipe, const model::Norm& norm,
                         const model::Linear& linear);

}  // namespace espalier::peft
