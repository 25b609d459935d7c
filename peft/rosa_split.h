// SPDX-License-Identifier: Apache-2.0
// One weight cut into a frozen rest and r of its singular directions (Hameed, Milios, Reddy, Rabusseau, "ROSA: Random
// Subspace Adaptation for Efficient Fine-Tuning", 2024, section 3): pure functions, without a model.
// R rank, k smaller width
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "peft/method_config.h"

namespace espalier::peft {

/// The `rank` of `size` singular directions, ascending, that event `event` gives the weight `name`; directions are
/// sorted by falling singular value. window: consecutive, its start uniform on 0..size-rank-1 (so the last window is
/// never drawn); uniform: any; top, bottom: the first, the last. A pure function: the same on any layout.
/// Requires: 0 < rank < size.
std::vector<std::int64_t> sample_subspace(const std::string& sampling, std::int64_t size, std::int64_t rank,
                                          std::uint64_t seed, std::int64_t event, std::string_view name);

/// W = rest + b a; in training fp32.
struct RosaParts {
  at::Tensor rest;  ///< [out, in]
  at::Tensor a;     ///< [R, in]
  at::Tensor b;     ///< [out, R]
};

/// rest + b a, in `type`.
at::Tensor merged_weight(const RosaParts& parts, at::ScalarType type);

/// Cuts `weight` [out, in] = U diag(s) V^T: a = diag(s_S) V_S^T (with sigma "both": the root of s on each factor),
/// b = U_S, rest = weight - b a. The entry of largest magnitude of each row of V_S^T is positive. Computed in the type
/// of `weight` (float or double); the parts are of type `stored`, the rest that of the rounded factors.
RosaParts split_weight(const at::Tensor& weight, const std::vector<std::int64_t>& subspace, const std::string& sigma,
                       at::ScalarType stored = at::kFloat);

/// The event of one weight, in place: merges its parts and cuts the sum anew, as `config` says (peft.rosa.split,
/// sampling, sigma, svd_type, svd_device).
void resample(RosaParts& parts, const RosaConfig& config, std::uint64_t seed, std::int64_t event,
              std::string_view name);

}  // namespace espalier::peft
