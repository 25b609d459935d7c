// SPDX-License-Identifier: Apache-2.0
// Initial values of trained tensors, on the host: drawn by canonical name, so every layout and every process starts
// alike.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

namespace espalier::model {

/// fp32 tensor ~ N(0, deviation^2).
at::Tensor normal_by_name(at::IntArrayRef shape, double deviation, std::uint64_t seed, std::string_view name);
/// The same normal, drawn again where it lies beyond two deviations.
at::Tensor truncated_normal_by_name(at::IntArrayRef shape, double deviation, std::uint64_t seed, std::string_view name);
/// fp32 tensor ~ U(-bound, bound).
at::Tensor uniform_by_name(at::IntArrayRef shape, double bound, std::uint64_t seed, std::string_view name);

}  // namespace espalier::model
