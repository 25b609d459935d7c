// SPDX-License-Identifier: Apache-2.0
// What travels along the chain of layers, and therefore across stage boundaries: a small set of named tensors. Every
// stage reads the micro-batch's ids and masks itself, so a carry holds activations only, and its shapes are known
// before data arrives.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace espalier::model {

/// Ordered by name, so that every rank walks it in the same order.
using Carry = std::map<std::string, at::Tensor>;

/// Inputs of one micro-batch under their `transformers` names (as data::NamedTensors).
using NamedTensors = std::map<std::string, at::Tensor>;

/// The sizes that decide every carry's shape.
struct BatchShape {
  std::int64_t rows = 0;           ///< B
  std::int64_t tokens = 0;         ///< T, visual ones included; of an image, its patches and the class token
  std::int64_t target_tokens = 0;  ///< U, of the decoder of an encoder-decoder
  std::int64_t cached_tokens = 0;  ///< generation: tokens of the generating stack before these
  std::int64_t visual_tokens = 0;  ///< V, the last of the tokens, which stand behind the text
};

/// One tensor that crosses a boundary.
struct CarryEntry {
  std::string name;
  std::vector<std::int64_t> sizes;
  at::ScalarType dtype = at::kFloat;
  bool needs_gradient = false;  ///< its gradient crosses back
  /// Of what crosses back: a fixed-point stream has an fp32 gradient.
  [[nodiscard]] at::ScalarType gradient_dtype() const { return at::isIntegralType(dtype, false) ? at::kFloat : dtype; }
};
/// Sorted by name.
using CarryPlan = std::vector<CarryEntry>;

}  // namespace espalier::model
