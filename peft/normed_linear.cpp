// SPDX-License-Identifier: Apache-2.0
// B rows, D width, O outputs, K networks whose weights are stacked
#include "peft/normed_linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "common/check.h"

namespace espalier::peft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::optional<at::Tensor> if_given(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

at::Tensor multiply(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  model::Linear linear;
  linear.weight = weight;
  linear.bias = bias;
  return linear.forward(x, {});
}

struct NormedLinear : torch::autograd::Function<NormedLinear> {
  /// `made_of`: base, then narrow, weight and bias of every term.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const std::optional<at::Tensor>& norm_weight,
                            const std::optional<at::Tensor>& norm_bias, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, double epsilon, const variable_list& made_of) {
    const at::Tensor normed = std::get<0>(at::native_layer_norm(x, {x.size(-1)}, norm_weight, norm_bias, epsilon));
    variable_list saved = {norm_weight.value_or(at::Tensor()), norm_bias.value_or(at::Tensor()), weight};
    saved.insert(saved.end(), made_of.begin(), made_of.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["epsilon"] = epsilon;
    ctx->saved_data["has_bias"] = bias.has_value();
    return multiply(normed, weight, bias.value_or(at::Tensor()));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &norm_weight = saved[0], &norm_bias = saved[1], &weight = saved[2];
    at::Tensor x = saved[3];
    for (std::size_t term = 4; term < saved.size(); term += 3) {
      x = x + multiply(saved[term], saved[term + 1], saved[term + 2]);
    }
    const at::Tensor gradient = grads[0].contiguous();
    const std::int64_t width = x.size(-1);
    const auto [normed, mean, deviation] = at::native_layer_norm(x, {width}, if_given(norm_weight), if_given(norm_bias),
                                                                 ctx->saved_data["epsilon"].toDouble());
    const auto as_rows = [&](const at::Tensor& tensor) {  // [B, ...], of stacks [K, B, ...]
      return weight.dim() == 2 ? tensor.flatten(0, -2) : tensor.flatten(1, -2);
    };
    const at::Tensor rows = as_rows(gradient);
    const at::Tensor weight_gradient = at::matmul(rows.transpose(-2, -1), as_rows(normed));               // [O, D]
    const at::Tensor bias_gradient = ctx->saved_data["has_bias"].toBool() ? rows.sum(-2) : at::Tensor();  // [O]
    const at::Tensor normed_gradient = at::matmul(rows, weight).view(x.sizes());
    const auto [x_gradient, norm_weight_gradient, norm_bias_gradient] = at::native_layer_norm_backward(
        normed_gradient, x, {width}, mean, deviation, if_given(norm_weight), if_given(norm_bias),
        {ctx->needs_input_grad(0), norm_weight.defined(), norm_bias.defined()});
    variable_list gradients = {x_gradient,      norm_weight_gradient, norm_bias_gradient,
                               weight_gradient, bias_gradient,        {}};
    gradients.resize(gradients.size() + saved.size() - 3);  // none for what x is made of
    return gradients;
  }
};

}  // namespace

at::Tensor normed_linear(const at::Tensor& x, const StateRecipe& recipe, const model::Norm& norm,
                         const model::Linear& linear) {
  ESPALIER_CHECK(norm.kind == model::NormKind::kLayerNorm);
  const auto cast = [&](const at::Tensor& weight) { return weight.defined() ? weight.to(x.scalar_type()) : weight; };
  variable_list made_of = {recipe.base.detach()};
  for (const LowRankTerm& term : recipe.terms) {
    for (const at::Tensor& part : {term.narrow, term.weight, term.bias}) {
      made_of.push_back(part.defined() ? cast(part).detach() : part);
    }
  }
  if (linear.weight.dim() == 2) {
    return NormedLinear::apply(x, if_given(cast(norm.weight)), if_given(cast(norm.bias)), cast(linear.weight),
                               if_given(cast(linear.bias)), norm.epsilon, made_of);
  }
  // Scale and shift of each network's norm go into its own linear, so that no state is scaled K times.
  at::Tensor weight = cast(linear.weight), bias = cast(linear.bias);
  if (norm.weight.defined()) {
    const at::Tensor shifted = at::bmm(weight, cast(norm.bias).unsqueeze(-1)).squeeze(-1);  // [K, O]
    bias = bias.defined() ? bias + shifted : shifted;
    weight = weight * cast(norm.weight).unsqueeze(1);
  }
  const std::optional<at::Tensor> none;
  if (x.dim() == 4) {
    return NormedLinear::apply(x, none, none, weight, if_given(bias), norm.epsilon, made_of);
  }
  // All read one state: one linear, as wide as theirs together.
  const at::Tensor wide = NormedLinear::apply(x, none, none, weight.flatten(0, 1),
                                              if_given(bias.defined() ? bias.flatten() : bias), norm.epsilon, made_of);
  return wide.unflatten(-1, {weight.size(0), weight.size(1)}).permute({2, 0, 1, 3}).contiguous();
}

}  // namespace espalier::peft
