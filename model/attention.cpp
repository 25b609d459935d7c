// SPDX-License-Identifier: Apache-2.0
#include "model/attention.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>
#include <optional>

#include "common/check.h"
#include "model/attention_kernel.h"
#include "model/attention_pieces.h"
#include "model/dropout.h"

namespace espalier::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool has_kernel(const at::Tensor& q) {
  return q.is_cpu() && q.scalar_type() != at::kDouble;
}

// The kernel walks rows of stride 1; anything else about the layout is free.
at::Tensor with_dense_rows(const at::Tensor& tensor) {
  return tensor.stride(3) == 1 ? tensor : tensor.contiguous();
}

template <typename T>
HeadRows<T> rows_of(const at::Tensor& tensor) {
  if (!tensor.defined()) {
    return {};
  }
  return {static_cast<T*>(tensor.data_ptr()), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

at::Tensor head_rows_like(const at::Tensor& tensor) {
  return at::empty({tensor.size(0), tensor.size(2), tensor.size(1), tensor.size(3)}, tensor.options()).transpose(1, 2);
}

// float, with the keys as a dense last dimension; undefined stays undefined
at::Tensor bias_for_kernel(const at::Tensor& bias, std::int64_t keys) {
  if (!bias.defined()) {
    return bias;
  }
  const at::Tensor wide = bias.to(at::kFloat).expand({bias.size(0), bias.size(1), bias.size(2), keys});
  return with_dense_rows(wide);
}

// Both biases come from bias_for_kernel and must outlive the problem.
AttentionProblem make_problem(const at::Tensor& q, const at::Tensor& k, const at::Tensor& bias,
                              const at::Tensor& key_bias, const AttentionOptions& options) {
  AttentionProblem problem;
  problem.batch = q.size(0);
  problem.heads = q.size(1);
  problem.queries = q.size(2);
  problem.keys = k.size(2);
  problem.width = q.size(3);
  problem.scale = static_cast<float>(options.scale);
  problem.is_causal = options.is_causal;
  problem.dropout = make_dropout_rule(options.dropout, options.dropout_key);
  const auto spread = [&](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.expand({problem.batch, problem.heads, problem.queries, problem.keys}) : tensor;
  };
  problem.bias = rows_of<const float>(spread(bias));
  problem.key_bias = rows_of<const float>(spread(key_bias));
  return problem;
}

AttentionResult forward_by_kernel(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                                  const AttentionOptions& options) {
  const at::Tensor dense_q = with_dense_rows(q), dense_k = with_dense_rows(k), dense_v = with_dense_rows(v);
  const at::Tensor dense_bias = bias_for_kernel(bias, k.size(2));
  const at::Tensor dense_key_bias = bias_for_kernel(options.key_bias, k.size(2));
  const AttentionProblem problem = make_problem(q, k, dense_bias, dense_key_bias, options);
  AttentionResult result{head_rows_like(q),
                         at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat))};
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, q.scalar_type(), "attention", [&] {
    if constexpr (!std::is_same_v<scalar_t, double>) {
      attention_forward<scalar_t>(problem, rows_of<const scalar_t>(dense_q), rows_of<const scalar_t>(dense_k),
                                  rows_of<const scalar_t>(dense_v), rows_of<scalar_t>(result.out),
                                  result.log_sum_exp.mutable_data_ptr<float>());
    }
  });
  return result;
}

struct Wanted {
  bool q, k, v, bias;
};

AttentionGradients backward_by_kernel(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& bias, const AttentionOptions& options,
                                      const at::Tensor& log_sum_exp, const at::Tensor& grad_out, const Wanted& wanted) {
  const at::Tensor dense_q = with_dense_rows(q), dense_k = with_dense_rows(k), dense_v = with_dense_rows(v);
  const at::Tensor dense_grad = with_dense_rows(grad_out), dense_bias = bias_for_kernel(bias, k.size(2));
  const at::Tensor dense_key_bias = bias_for_kernel(options.key_bias, k.size(2));
  const AttentionProblem problem = make_problem(q, k, dense_bias, dense_key_bias, options);
  AttentionGradients gradients{wanted.q ? head_rows_like(q) : at::Tensor(),
                               wanted.k ? head_rows_like(k) : at::Tensor(),
                               wanted.v ? head_rows_like(v) : at::Tensor(),
                               {}};
  at::Tensor bias_sum;
  BiasGradient bias_gradient;
  if (wanted.bias) {
    bias_sum = at::zeros({bias.size(0), q.size(1), bias.size(2), k.size(2)}, q.options().dtype(at::kFloat));
    bias_gradient = {bias_sum.mutable_data_ptr<float>(), bias.size(0), bias.size(2)};
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, q.scalar_type(), "attention", [&] {
    if constexpr (!std::is_same_v<scalar_t, double>) {
      attention_backward<scalar_t>(problem, rows_of<const scalar_t>(dense_q), rows_of<const scalar_t>(dense_k),
                                   rows_of<const scalar_t>(dense_v), rows_of<const scalar_t>(dense_grad),
                                   log_sum_exp.const_data_ptr<float>(), rows_of<scalar_t>(gradients.q),
                                   rows_of<scalar_t>(gradients.k), rows_of<scalar_t>(gradients.v), bias_gradient);
    }
  });
  if (wanted.bias) {
    gradients.bias = bias_sum.sum_to_size(bias.sizes()).to(bias.scalar_type());
  }
  return gradients;
}

class RecomputedAttention : public torch::autograd::Function<RecomputedAttention> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const std::optional<at::Tensor>& optional_bias, const std::optional<at::Tensor>& key_bias,
                            double scale, bool is_causal, double probability, std::int64_t key) {
    const at::Tensor bias = optional_bias.value_or(at::Tensor());
    const AttentionOptions options{scale, is_causal, probability, static_cast<std::uint64_t>(key),
                                   key_bias.value_or(at::Tensor())};
    const AttentionResult result =
        has_kernel(q) ? forward_by_kernel(q, k, v, bias, options) : attention_forward_in_pieces(q, k, v, bias, options);
    ctx->save_for_backward({q, k, v, bias, result.log_sum_exp, options.key_bias});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["is_causal"] = is_causal;
    ctx->saved_data["probability"] = probability;
    ctx->saved_data["key"] = key;
    return result.out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    ESPALIER_CHECK(!at::GradMode::is_enabled(),
                   "attention is differentiable once; do not create a graph of its backward");
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &bias = saved[3], &log_sum_exp = saved[4];
    const AttentionOptions options{ctx->saved_data["scale"].toDouble(), ctx->saved_data["is_causal"].toBool(),
                                   ctx->saved_data["probability"].toDouble(),
                                   static_cast<std::uint64_t>(ctx->saved_data["key"].toInt()), saved[5]};
    const Wanted wanted{ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2),
                        bias.defined() && ctx->needs_input_grad(3)};
    const AttentionGradients gradients =
        has_kernel(q) ? backward_by_kernel(q, k, v, bias, options, log_sum_exp, grads[0], wanted)
                      : attention_backward_in_pieces(q, k, v, bias, options, log_sum_exp, grads[0], wanted.bias);
    return {gradients.q, gradients.k, gradients.v, gradients.bias, {}, {}, {}, {}, {}};
  }
};

// [L, S], true where a key lies after the query
at::Tensor causal_mask(std::int64_t queries, std::int64_t keys, at::Device device) {
  return at::ones({queries, keys}, at::TensorOptions().dtype(at::kBool).device(device)).triu(1);
}

// scaled_dot_product_attention with the two things it lacks: a mask beside is_causal, and zeros for rows without keys.
// `bias`: with the key bias added.
at::Tensor library_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                             const AttentionOptions& options) {
  if (!bias.defined()) {
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, options.is_causal, options.scale);
  }
  at::Tensor mask = bias.to(q.scalar_type());
  if (options.is_causal) {
    mask = mask.masked_fill(causal_mask(q.size(2), k.size(2), q.device()), -kInfinity);
  }
  const at::Tensor is_blind = (mask == -kInfinity).all(-1, /*keepdim=*/true);  // [b, h, l, 1]
  mask = mask.masked_fill(is_blind, 0).expand({-1, -1, -1, k.size(2)});
  return at::scaled_dot_product_attention(q, k, v, mask, 0.0, /*is_causal=*/false, options.scale)
      .masked_fill(is_blind, 0);
}

}  // namespace

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                     const AttentionOptions& options) {
  ESPALIER_CHECK(q.dim() == 4 && k.dim() == 4 && k.sizes() == v.sizes() && q.size(0) == k.size(0) &&
                     q.size(1) == k.size(1) && q.size(3) == k.size(3),
                 "attention: expected q [B,H,L,W] and k, v [B,H,S,W]");
  ESPALIER_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
                 "attention: expected q, k and v of one dtype");
  ESPALIER_CHECK(options.dropout >= 0 && options.dropout < 1);
  if (q.numel() == 0 || k.numel() == 0) {
    return at::zeros_like(q);
  }
  at::Tensor bias4 = bias;
  while (bias4.defined() && bias4.dim() < 4) {
    bias4 = bias4.unsqueeze(0);
  }
  if (!has_kernel(q) && options.dropout == 0 && !(bias4.defined() && bias4.requires_grad())) {
    return library_attention(q, k, v, sum_of_biases(bias4, options.key_bias), options);
  }
  const auto if_given = [](const at::Tensor& tensor) {
    return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
  };
  return RecomputedAttention::apply(q, k, v, if_given(bias4), if_given(options.key_bias), options.scale,
                                    options.is_causal, options.dropout, static_cast<std::int64_t>(options.dropout_key));
}

at::Tensor attention_reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                               const AttentionOptions& options) {
  at::Tensor scores = at::matmul(q, k.transpose(-2, -1)) * options.scale;  // [B, H, L, S]
  if (bias.defined()) {
    scores = scores + bias;
  }
  if (options.key_bias.defined()) {
    scores = scores + options.key_bias;
  }
  if (options.is_causal) {
    scores = scores.masked_fill(causal_mask(q.size(2), k.size(2), q.device()), -kInfinity);
  }
  const at::Tensor is_blind = (scores == -kInfinity).all(-1, /*keepdim=*/true);
  at::Tensor weights = at::softmax(scores.masked_fill(is_blind, 0), -1).masked_fill(is_blind, 0);
  if (options.dropout > 0) {
    const at::Tensor mask = dropout_mask(weights.numel(), options.dropout, options.dropout_key);
    weights = weights * mask.view(weights.sizes()).to(q.options()) / (1 - options.dropout);
  }
  return at::matmul(weights, v);
}

}  // namespace espalier::model
