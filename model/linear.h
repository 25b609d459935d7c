// SPDX-License-Identifier: Apache-2.0
// A linear map with one slot for a low-rank delta (LoRA, ROSA).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/context.h"

namespace espalier::model {

/// Something added to a linear's output.
class LinearDelta {
 public:
  virtual ~LinearDelta() = default;
  /// x [..., in] -> [..., out], added by Linear::forward.
  [[nodiscard]] virtual at::Tensor forward(const at::Tensor& x, const ForwardContext& context) const = 0;
};

/// y = x W^T + b + delta(x); W [out, in]; b may be undefined. A trained fp32 weight is cast to x's type on use.
/// The stack of K linears of K networks that run together: W [K, out, in], b [K, out]; x [B, T, in], which all read, or
/// [K, B, T, in]; y [K, B, T, out], each network's up to rounding; it has no delta.
struct Linear {
  at::Tensor weight;                         ///< [out, in]
  at::Tensor bias;                           ///< [out]
  std::shared_ptr<const LinearDelta> delta;  ///< null: none
  std::int64_t in_features = 0, out_features = 0;
  bool has_bias = true;

  Linear() = default;
  Linear(std::int64_t in, std::int64_t out, bool bias_wanted)
      : in_features(in), out_features(out), has_bias(bias_wanted) {}
  [[nodiscard]] at::Tensor forward(const at::Tensor& x, const ForwardContext& context) const;
};

enum class NormKind { kLayerNorm, kRmsNorm };

/// LayerNorm or RMSNorm over the last dimension; statistics in fp32 whatever the type of x. The stack of K networks'
/// norms has weights [K, width]; x [B, T, width] or [K, B, T, width] -> [K, B, T, width].
struct Norm {
  NormKind kind = NormKind::kLayerNorm;
  double epsilon = 1e-12;
  std::int64_t width = 0;
  at::Tensor weight;  ///< [width]
  at::Tensor bias;    ///< [width]; undefined for RMSNorm
  [[nodiscard]] at::Tensor forward(const at::Tensor& x) const;
};

/// Called with a role ("attention.query.weight"), the slot, and the shape it must have.
using WeightVisitor =
    std::function<void(const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& shape)>;
/// `role`.weight, and .bias where there is one.
void visit_weights(const std::string& role, Linear& linear, const WeightVisitor& visit);
void visit_weights(const std::string& role, Norm& norm, const WeightVisitor& visit);

}  // namespace espalier::model
