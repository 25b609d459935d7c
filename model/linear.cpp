// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

#include <ATen/ATen.h>

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

}  // namespace

at::Tensor Linear::forward(const at::Tensor& x, const ForwardContext& context) const {
  const auto y = at::linear(x, in_type_of(x, weight), in_type_of(x, bias));
  return delta ? y + delta->forward(x, context) : y;
}

at::Tensor Norm::forward(const at::Tensor& x) const {
  // at::layer_norm accumulates in fp32 for every type of x.
  return kind == NormKind::kRmsNorm
             ? rms_norm(x, in_type_of(x, weight), epsilon)
             : at::layer_norm(x, {width}, in_type_of(x, weight), in_type_of(x, bias), epsilon, /*cudnn_enable=*/false);
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
