// SPDX-License-Identifier: Apache-2.0
#include "meft_recurrence.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "model/block_layer.h"
#include "model/dropout.h"
#include "peft/meft.h"

namespace espalier::peft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// `value` forwards; scale * gradient to x and the gradient itself to the branch backwards.
struct Coupling : torch::autograd::Function<Coupling> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& /*x*/, const at::Tensor& /*branch*/,
                            const at::Tensor& value, double scale) {
    context->saved_data["scale"] = scale;
    return value.clone();
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const double scale = context->saved_data["scale"].toDouble();
    return {scale == 1 ? gradients[0] : gradients[0] * scale, gradients[0], {}, {}};
  }
};

/// The equations of docs/methods/meft.md, reading the adapters by name.
class Recurrence {
 public:
  Recurrence(const Stages& stages, const MeftConfig& config, const model::ForwardContext& context)
      : stages_(stages), config_(config), context_(context), slice_(*stages.slices.front()) {
    const auto compute = slice_.options().compute_type;
    compute_ = compute;
    real_ = at::promote_types(compute, at::kFloat);
  }

  Step step(model::NamedTensors batch, const LossGradient& loss_gradient = logits_gradient) {
    const at::AutoGradMode with_gradient(true);
    model::complete_decoder_inputs(slice_.backbone(), batch);
    inputs_ = slice_.prepare(batch);
    model::Carry carry;
    std::optional<Stream> first, second;
    std::int64_t number = 0;
    for (const auto& layer : slice_.layers()) {
      if (layer->plan().block && number++ >= config_.frozen_bottom) {
        if (!first) first = second = enter(carry.at("hidden"));
        climb(*layer, *first, *second, carry);
        continue;
      }
      if (first) {
        carry["hidden"] = merge(first->real, second->real, layer->plan()).to(compute_);
        first.reset();
      }
      layer->forward(carry, inputs_, context_);
    }
    Step step;
    step.logits = carry.at("logits").detach();
    variable_list trained;
    for (const auto& tensor : stages_.trained()) trained.push_back(tensor.value);
    const auto gradients = torch::autograd::grad({carry.at("logits")}, trained, {loss_gradient(step.logits)});
    for (std::size_t i = 0; i < trained.size(); ++i) step.gradients[stages_.trained()[i].name] = gradients[i];
    return step;
  }

 private:
  struct Stream {
    at::Tensor bits;  // int32, where the arithmetic is exact
    at::Tensor real;
  };
  [[nodiscard]] bool is_exact() const { return config_.inversion == "exact"; }
  [[nodiscard]] double unit() const { return std::ldexp(1.0, static_cast<int>(config_.fraction_bits)); }
  [[nodiscard]] at::Tensor rounded(const at::Tensor& x) const {
    return at::round(x.detach().to(at::kDouble) * unit()).to(at::kInt);
  }
  [[nodiscard]] at::Tensor value_of(const at::Tensor& bits) const { return (bits.to(at::kDouble) / unit()).to(real_); }

  [[nodiscard]] Stream enter(const at::Tensor& hidden) const {
    if (!is_exact()) return {{}, hidden.to(real_)};
    const at::Tensor bits = rounded(hidden);
    return {bits, Coupling::apply(hidden.to(real_), at::zeros_like(hidden, real_), value_of(bits), 1.0)};
  }
  [[nodiscard]] Stream join(const Stream& x, double scale, const at::Tensor& branch) const {
    if (!is_exact()) return {{}, Coupling::apply(x.real, branch, (x.real * scale + branch).detach(), scale)};
    const auto divisor = static_cast<std::int64_t>(std::round(1 / scale));
    const at::Tensor bits = at::floor_divide(x.bits, divisor) + rounded(branch);
    return {bits, Coupling::apply(x.real, branch, value_of(bits), scale)};
  }
  // An alias gathers what flows back from one reader: sums of two numbers have no order.
  static Stream alias(const Stream& x) { return {x.bits, at::alias(x.real)}; }

  void climb(model::Layer& layer, Stream& x1, Stream& x2, model::Carry& carry) const {
    const bool is_third = config_.variant == 3;
    const double lambda = config_.lambda != 0 ? config_.lambda : config_.variant == 2 ? 1 : 0.1;
    const double beta = config_.beta != 0 ? config_.beta : config_.variant == 1 ? 1 : 0.1;
    const auto run = [&](bool is_f, const at::Tensor& x) {
      if (is_third) return part(layer, is_f, x, carry);
      return config_.variant == (is_f ? 1 : 2) ? whole(layer, x, carry) : between(layer, x);
    };
    x1 = alias(x1);
    x2 = alias(x2);
    const Stream y1 = join(x1, lambda, run(true, at::alias(x2.real)));
    const Stream y2 = join(x2, beta, run(false, at::alias(y1.real)));
    x1 = is_third ? y1 : y2;
    x2 = is_third ? y2 : y1;
  }
  at::Tensor whole(model::Layer& layer, const at::Tensor& x, model::Carry& carry) const {
    carry["hidden"] = x.to(compute_);
    layer.forward(carry, inputs_, context_);
    return carry.at("hidden").to(real_);
  }
  at::Tensor part(model::Layer& layer, bool is_attention, const at::Tensor& x, const model::Carry& carry) const {
    const auto& block = *layer.block();
    const auto around = model::block_inputs(layer.plan(), carry, inputs_);
    return (is_attention ? block.attention_part(x.to(compute_), around, context_)
                         : block.feed_forward_part(x.to(compute_), context_))
        .to(real_);
  }
  at::Tensor between(const model::Layer& layer, const at::Tensor& x) const {
    const std::string name = layer.plan().name + ".rev_adapter.";
    const auto weight = [&](const char* role) { return stages_.trained(name + role).to(compute_); };
    at::Tensor input = x.to(compute_);
    if (config_.norm_in_adapter) {
      input = at::layer_norm(input, {input.size(-1)}, weight("norm.weight"), weight("norm.bias"));
    }
    at::Tensor narrow = at::linear(input, weight("down.weight"), weight("down.bias"));
    narrow = model::activate(narrow, layer.plan().block->activation);
    if (context_.is_training) {
      narrow = model::dropout(narrow, layer.plan().block->hidden_dropout,
                              model::dropout_key(context_, {RandomDomain::kAdapter, layer.plan().index},
                                                 model::DropoutSite::kReversibleAdapter));
    }
    return at::linear(narrow, weight("up.weight"), weight("up.bias")).to(real_);
  }
  [[nodiscard]] at::Tensor merge(const at::Tensor& x1, const at::Tensor& x2, const model::LayerPlan& reader) const {
    const auto& below = slice_.backbone().layer(static_cast<int>(reader.index) - 1);
    if (config_.merge == "concat") {
      const std::string stack = below.name.substr(0, below.name.rfind('.'));
      return at::linear(at::cat({x1, x2}, -1), stages_.trained(stack + ".merge.weight").to(real_));
    }
    const bool is_sum = config_.merge == "sum" || (config_.merge == "auto" && below.block->is_causal);
    if (!is_sum) return (x1 + x2) * 0.5;
    return config_.variant == 2 ? x1 + 0.1 * x2 : 0.1 * x1 + x2;
  }

  const Stages& stages_;
  MeftConfig config_;
  model::ForwardContext context_;
  const model::StageSlice& slice_;
  at::ScalarType compute_, real_;
  model::StageInputs inputs_;
};

}  // namespace

MethodConfig meft(std::int64_t variant, MeftConfig options) {
  options.variant = variant;
  options.rank = 4;
  return {.method = "meft", .meft = options};
}

TinyConfig of_depth(std::int64_t num_blocks, double dropout) {
  TinyConfig config;
  config.num_blocks = num_blocks;
  config.dropout = dropout;
  return config;
}

void stir_adapters(const Stages& stages) {
  for (const TrainedTensor& tensor : stages.trained()) {
    if (tensor.name.find("adapter") == std::string::npos) continue;
    const at::Tensor value = tensor.value.detach();
    value.add_((at::arange(value.numel()) + 1).view(value.sizes()).sin(), 0.1);
  }
}

Step step_by_the_book(const Stages& stages, const MeftConfig& config, const model::NamedTensors& batch,
                      const LossGradient& loss_gradient) {
  return Recurrence(stages, config, training_context()).step(batch, loss_gradient);
}

void expect_same_bits(const Step& found, const Step& expected) {
  EXPECT_TRUE(at::equal(found.logits, expected.logits));
  ASSERT_EQ(found.gradients.size(), expected.gradients.size());
  for (const auto& [name, gradient] : expected.gradients) {
    EXPECT_TRUE(at::equal(found.gradients.at(name), gradient))
        << name << " differs by " << (found.gradients.at(name) - gradient).abs().max().item<double>();
  }
}

double gradient_error(const Step& found, const Step& expected) {
  double error = 0;
  EXPECT_EQ(found.gradients.size(), expected.gradients.size());
  for (const auto& [name, gradient] : expected.gradients) {
    const at::Tensor truth = gradient.to(at::kDouble);
    const double size = truth.abs().max().item<double>();
    EXPECT_GT(size, 0) << name;
    error = std::max(error, (found.gradients.at(name).to(at::kDouble) - truth).abs().max().item<double>() / size);
  }
  return error;
}

model::ForwardContext measured_context() {
  return {.is_training = true, .key = {.seed = 5, .step = 64, .micro_batch = 0}};
}

double inversion_error(const Stages& stages) {
  return dynamic_cast<const MeftMethod&>(*stages.methods.front()).inversion_error().value();
}

}  // namespace espalier::peft
