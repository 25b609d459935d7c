// SPDX-License-Identifier: Apache-2.0
// Training folded back into the weights, so that the plain model without any method computes the same.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "peft/method.h"

namespace espalier::peft {

/// Weights of the slice that training changed, by canonical name, in fp32: W + scale B A for LoRA, W_f + B A for ROSA,
/// and whatever trains as it is (heads, biases, all weights).
/// Throws: ConfigError for a method that adds parts which no weight of the model can stand for, saying why.
std::map<std::string, at::Tensor> merged_weights(Method& method, model::StageSlice& slice);

}  // namespace espalier::peft
