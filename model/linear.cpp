// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

#include <ATen/ATen.h>

#include "common/check.h"

namespace espalier::model {

namespace {

/// `tensor` in the type of `x`; the tensor itself where that is so already, or where there is none.
at::Tensor in_type_of(const at::Tensor& x, const at::Tensor& tensor) {
  return tensor.defined() && tensor.scalar_type() != x.scalar_type() ? tensor.to(x.scalar_type()) : tensor;
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const auto wide = x.to(at::kFloat);
  const auto scale = wide.square().mean(-1, /*keepdim=*/true).add_(epsilon).rsqrt_();
  return (wide * scale).to(x.scalar_type()) * weight;
}

/// [K, width] -> [K, 1, 1, width], as it meets [K, B, T, width]; a single network's [width] as it is.
at::Tensor by_network(const at::Tensor& weight) {
  return weight.defined() && weight.dim() == 2 ? weight.unsqueeze(1).unsqueeze(1) : weight;
}

/// x [B, T, in] or [K, B, T, in], weight [K, out, in], bias [K, out] or undefined -> [K, B, T, out]
at::Tensor stacked_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (x.dim() == 3) {  // one product, as wide as all together
    const auto wide = at::linear(x, weight.flatten(0, 1), bias.defined() ? bias.flatten() : bias);
    return wide.unflatten(-1, {weight.size(0), weight.size(1)}).permute({2, 0, 1, 3}).contiguous();
  }
  const auto rows = x.flatten(1, 2);  // [K, B * T, in]
  const auto y = bias.defined() ? at::baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))
                                : at::bmm(rows, weight.transpose(1, 2));
  return y.unflatten(1, {x.size(1), x.size(2)});
}

}  // namespace

at::Tensor Linear::forward(const at::Tensor& x, const ForwardContext& context) const {
  if (weight.dim() == 3) {
    ESPALIER_CHECK(!delta, "a stack of linears has no slot for a delta");
    return stacked_linear(x, in_type_of(x, weight), in_type_of(x, bias));
  }
  const auto y = at::linear(x, in_type_of(x, weight), in_type_of(x, bias));
  return delta ? y + delta->forward(x, context) : y;
}

at::Tensor Norm::forward(const at::Tensor& x) const {
  const auto scale = by_network(in_type_of(x, weight));
  if (kind == NormKind::kRmsNorm) return rms_norm(x, scale, epsilon);
  // at::layer_norm accumulates in fp32 for every type of x.
  const auto normed = [&](const at::Tensor& own_scale, const at::Tensor& shift) {
    return at::layer_norm(x, {width}, own_scale, shift, epsilon, /*cudnn_enable=*/false);
  };
  const auto shift = by_network(in_type_of(x, bias));
  if (weight.defined() && weight.dim() == 2) return at::addcmul(shift, normed({}, {}), scale);
  return normed(scale, shift);
}

void visit_weights(const std::string& role, Linear& linear, const WeightVisitor& visit) {
  visit(role + ".weight", linear.weight, {linear.out_features, linear.in_features});
  if (linear.has_bias) visit(role + ".bias", linear.bias, {linear.out_features});
}

void visit_weights(const std::string& role, Norm& norm, const WeightVisitor& visit) {
  visit(role + ".weight", norm.weight, {norm.width});
  if (norm.kind == NormKind::kLayerNorm) visit(role + ".bias", norm.bias, {norm.width});
}

}  // namespace espalier::model
