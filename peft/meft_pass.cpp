// SPDX-License-Identifier: Apache-2.0
#include "peft/meft_pass.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "common/log.h"

namespace espalier::peft {
namespace {

using Half = MeftBlock::Half;

at::Tensor take(model::Carry& carry, const char* name) {
  auto node = carry.extract(name);
  ESPALIER_CHECK(!node.empty(), "no gradient for '{}'", name);
  return std::move(node.mapped());
}

/// Adds to what came from above, in this order.
void add_to(model::Carry& gradients, const std::string& name, const at::Tensor& gradient) {
  const auto [place, is_first] = gradients.emplace(name, gradient);
  if (!is_first) place->second = place->second + gradient;
}

at::Tensor scaled(const at::Tensor& x, const StreamScale& scale) {
  return scale.value == 1 ? x : x * scale.value;
}

double relative_error(const at::Tensor& found, const at::Tensor& expected) {
  const at::Tensor truth = expected.to(at::kDouble);
  const double size = truth.norm().item<double>();
  const double error = (found.to(at::kDouble) - truth).norm().item<double>();
  return size > 0 ? error / size : error;
}

}  // namespace

void InversionCheck::compare(const Streams& found, const Streams& expected, const std::string& name) {
  if (error_limit_ == 0) {
    if (at::equal(found.first, expected.first) && at::equal(found.second, expected.second)) {
      error_ = 0;
      return;
    }
    throw InternalError(fmt::format(
        "{}: expected the backward to make the block's input streams again bit by bit, found others: something between "
        "here and the top of the stage computes otherwise with a graph than without",
        name));
  }
  const double error =
      std::max(relative_error(found.first, expected.first), relative_error(found.second, expected.second));
  log_info("meft", "{}: inverted streams have a relative error of {:.1e}", name, error);
  error_ = std::max(error, error_.value_or(0));
  if (!(error <= error_limit_)) {
    throw NumericError(fmt::format(
        "{}: expected inverted streams with a relative error of at most peft.meft.error_limit={:g}, found {:.1e}; take "
        "peft.meft.inversion=exact, more anchors, a larger lambda and beta, or peft.meft.cached_top",
        name, error_limit_, error));
  }
}

void MeftBlockStep::forward(MeftSetting& setting, const MeftBlock& block, Streams& streams,
                            MeftBlock::Surroundings& surroundings, const Neighbours& neighbours, bool is_checked,
                            std::unique_ptr<MeftStep>* step) {
  const MeftPlan& plan = setting.plan;
  const StreamArithmetic& arithmetic = *setting.arithmetic;
  const std::string& name = block.place().name;
  std::unique_ptr<MeftBlockStep> kept(step ? new MeftBlockStep(setting, block) : nullptr);
  const bool is_reversible = plan.role(static_cast<int>(block.place().index)) == MeftRole::kReversible;
  const bool keeps_graph = kept && !is_reversible;
  if (kept) {
    kept->surroundings_ = surroundings;
    kept->is_reversible_ = is_reversible;
    kept->inverts_below_ = is_reversible && neighbours.inverts_below;
    if (is_reversible && is_checked && !neighbours.inverts_below) kept->expected_ = streams;
  }
  const auto join = [&](Half half, const at::Tensor& read, const at::Tensor& kept_stream, const StreamScale& scale,
                        at::Tensor* remainder) {
    at::Tensor value;
    if (keeps_graph) {
      auto& graph = half == Half::kF ? kept->f_ : kept->g_;
      graph = kept->trace(half, arithmetic.read(read));
      value = std::exchange(graph->value, {});
    } else {
      value = block.run(half, arithmetic.read(read), surroundings);
    }
    auto joined = arithmetic.join(kept_stream, scale, value, /*keeps_remainder=*/kept && is_reversible, name);
    if (kept) *remainder = std::move(joined.remainder);
    return joined.sum;
  };
  at::Tensor f_remainder, g_remainder;
  Streams y;
  y.first = join(Half::kF, streams.second, streams.first, plan.lambda, &f_remainder);
  streams.first.reset();
  y.second = join(Half::kG, y.first, streams.second, plan.beta, &g_remainder);
  if (plan.switches()) std::swap(y.first, y.second);
  streams = std::move(y);
  if (!kept) return;
  if (keeps_graph) surroundings.carry = kept->surroundings_.carry;  // with the position bias that it made
  kept->f_remainder_ = std::move(f_remainder);
  kept->g_remainder_ = std::move(g_remainder);
  if (is_reversible && neighbours.keeps_output) kept->output_ = streams;
  *step = std::move(kept);
}

MeftBlock::Traced MeftBlockStep::trace(Half half, const at::Tensor& x) {
  // G reads what F made, and F has trained tensors; what F reads may have none below.
  const bool needs_input = half == Half::kG || setting_.plan.needs_gradient(static_cast<int>(block_.place().index));
  return block_.trace(half, x, needs_input, setting_.plan.memory_trains, surroundings_);
}

at::Tensor MeftBlockStep::differentiate(Half half, MeftBlock::Traced traced, const at::Tensor& gradient,
                                        MeftDescent& descent, const GradientSink& sink) {
  auto gradients = traced.graph->backward({{"value", gradient}}, block_.trained(half).sink_into(sink));
  if (const auto memory = gradients.find("memory"); memory != gradients.end()) {
    add_to(descent.gradients, "memory", memory->second);
  }
  const auto input = gradients.find("hidden");
  return input == gradients.end() ? at::Tensor() : input->second;
}

void MeftBlockStep::backward(MeftDescent& descent, const GradientSink& sink) {
  const MeftPlan& plan = setting_.plan;
  const StreamArithmetic& arithmetic = *setting_.arithmetic;
  if (output_) descent.streams = std::move(*output_);
  Streams y = std::exchange(descent.streams, {});
  at::Tensor dy1 = take(descent.gradients, kFirstStream), dy2 = take(descent.gradients, kSecondStream);
  if (plan.switches()) {
    std::swap(y.first, y.second);
    std::swap(dy1, dy2);
  }
  Streams x;
  if (is_reversible_) {
    g_ = trace(Half::kG, arithmetic.read(y.first));
    x.second = arithmetic.separate(y.second, plan.beta, std::exchange(g_->value, {}), g_remainder_);
    y.second.reset();
  }
  dy1 = dy1 + differentiate(Half::kG, std::move(*std::exchange(g_, {})), dy2, descent, sink);
  if (is_reversible_) {
    f_ = trace(Half::kF, arithmetic.read(x.second));
    const at::Tensor value = std::exchange(f_->value, {});
    if (inverts_below_ || expected_) x.first = arithmetic.separate(y.first, plan.lambda, value, f_remainder_);
    y.first.reset();
  }
  if (expected_) setting_.check.compare(x, *std::exchange(expected_, {}), block_.place().name);
  if (inverts_below_) descent.streams = std::move(x);
  x = {};
  const at::Tensor through_f = differentiate(Half::kF, std::move(*std::exchange(f_, {})), dy1, descent, sink);
  if (!through_f.defined()) return;  // nothing trains below
  descent.gradients.emplace(kFirstStream, scaled(dy1, plan.lambda));
  descent.gradients.emplace(kSecondStream, scaled(dy2, plan.beta) + through_f);
}

void MeftEntryStep::backward(MeftDescent& descent, const GradientSink& /*sink*/) {
  const at::Tensor first = take(descent.gradients, kFirstStream);
  descent.gradients.emplace("hidden", first + take(descent.gradients, kSecondStream));
}

MeftJointStep::MeftJointStep(model::Carry leaves, const model::Carry& outputs, TrainedRange trained)
    : trained_(std::move(trained)), graph_(std::move(leaves), outputs, trained_.tensors) {
  for (const auto& [name, value] : outputs) outputs_.push_back(name);
}

void MeftJointStep::backward(MeftDescent& descent, const GradientSink& sink) {
  model::Carry gradients;
  for (const std::string& name : outputs_) gradients.emplace(name, take(descent.gradients, name.c_str()));
  for (const auto& [name, gradient] : graph_.backward(gradients, trained_.sink_into(sink))) {
    add_to(descent.gradients, name, gradient);
  }
}

model::Carry MeftPass::backward(const model::Carry& output_gradients, const GradientSink& sink) {
  const at::NoGradGuard no_grad;
  ESPALIER_CHECK(!steps_.empty(), "backward may be called once");
  MeftDescent descent{.gradients = output_gradients, .streams = {}};
  while (!steps_.empty()) {
    const std::unique_ptr<MeftStep> step = std::move(steps_.back());
    steps_.pop_back();
    step->backward(descent, sink);
  }
  for (auto& [name, gradient] : descent.gradients) gradient = gradient.contiguous();
  return std::move(descent.gradients);
}

}  // namespace espalier::peft
