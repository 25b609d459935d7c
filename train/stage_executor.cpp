// SPDX-License-Identifier: Apache-2.0
#include "train/stage_executor.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "common/check.h"

namespace espalier::train {

namespace {

/// Nothing flows back in evaluation, so a fast first stage would otherwise keep the whole split in flight.
constexpr std::size_t kMostSendsOfEvaluation = 16;

/// Losses of one micro-batch after the other, of `count` objectives each, once they are all queued.
std::vector<std::vector<double>> read_losses(const std::vector<at::Tensor>& losses, std::size_t count) {
  std::vector<std::vector<double>> read;
  if (losses.empty()) {
    return read;
  }
  const auto values = at::stack(losses).to(at::kCPU, at::kDouble).contiguous();
  const auto* value = values.const_data_ptr<double>();
  for (std::size_t first = 0; first < losses.size(); first += count) {
    read.emplace_back(value + first, value + first + count);
  }
  return read;
}

}  // namespace

double gradient_scale(at::ScalarType compute_type, double largest) {
  if (compute_type != at::kHalf || !(largest > 0)) {
    return 1;
  }
  return std::ldexp(1.0, std::max(0, std::ilogb(1 / largest)));
}

StageExecutor::StageExecutor(dist::Mesh& mesh, model::StageSlice& slice, peft::Method& method)
    : mesh_(mesh), slice_(slice), method_(method) {
  for (const auto& objective : method_.objectives()) {
    objective_of_.resize(static_cast<std::size_t>(objective.end_trained), logits_.size());
    logits_.push_back(peft::logits_name(objective));
  }
}

model::Carry StageExecutor::receive(const model::CarryPlan& plan, bool gradients, int peer, dist::Channel channel) {
  model::Carry carry;
  std::vector<dist::Work> works;
  for (const auto& entry : plan) {
    if (gradients && !entry.needs_gradient) {
      continue;
    }
    const auto dtype = gradients ? entry.gradient_dtype() : entry.dtype;
    auto tensor = at::empty(entry.sizes, at::TensorOptions().dtype(dtype).device(slice_.options().device));
    works.push_back(mesh_.pipeline->recv(tensor, peer, channel));
    carry.emplace(entry.name, std::move(tensor));
  }
  for (auto& work : works) {
    work.wait();
  }
  return carry;
}

void StageExecutor::send(const model::CarryPlan& plan, bool gradients, const model::Carry& carry, int peer,
                         dist::Channel channel) {
  const dist::TrafficLabelScope label(*mesh_.pipeline, gradients ? "activation_gradient" : "activation");
  for (const auto& entry : plan) {
    if (gradients && !entry.needs_gradient) {
      continue;
    }
    const auto found = carry.find(entry.name);
    ESPALIER_CHECK(found != carry.end() && found->second.defined(), "stage {} must send '{}' and does not have it",
                   mesh_.place.stage_index, entry.name);
    auto tensor = found->second.to(gradients ? entry.gradient_dtype() : entry.dtype).contiguous();
    ESPALIER_CHECK(tensor.sizes() == at::IntArrayRef(entry.sizes), "'{}' has another shape than planned", entry.name);
    sends_.push_back(mesh_.pipeline->send(std::move(tensor), peer, channel));
  }
}

peft::StageResult StageExecutor::run_forward(const MicroBatch& micro_batch, const model::ForwardContext& context,
                                             bool keeps_pass) {
  const auto& place = mesh_.place;
  model::Carry incoming;
  if (!place.is_first_stage()) {
    incoming = receive(method_.plan_carry(slice_.range().first, micro_batch.shape), /*gradients=*/false,
                       place.stage_index - 1, dist::Channel::kForward);
  }
  const bool goes_on = context.cache != nullptr && context.cache->num_tokens() > 0;
  auto result = method_.forward(std::move(incoming), slice_.prepare(micro_batch.inputs, goes_on), context, keeps_pass);
  if (!place.is_last_stage()) {
    send(method_.plan_carry(slice_.range().end, micro_batch.shape), /*gradients=*/false, result.outgoing,
         place.stage_index + 1, dist::Channel::kForward);
  }
  return result;
}

model::Carry StageExecutor::run_loss(const MicroBatch& micro_batch, const model::Carry& outgoing,
                                     const LossFunction& loss, const std::vector<double>& scales,
                                     std::vector<at::Tensor>& losses) const {
  // The loss is a graph of its own, so that methods need not know it.
  const at::AutoGradMode with_gradient(true);
  auto inputs = micro_batch.inputs;
  if (const auto teacher = outgoing.find(peft::kTeacherLogits); teacher != outgoing.end()) {
    inputs.insert(*teacher);
  }
  model::Carry gradients;
  for (std::size_t k = 0; k < logits_.size(); ++k) {
    const auto logits = outgoing.at(logits_[k]).detach().requires_grad_(true);
    const auto value = loss(k, logits, inputs);
    // Scaled where the gradient begins, in fp32: the first cast to fp16 lies between the loss and the logits.
    const auto start = at::full_like(value, scales.empty() ? 1 : scales[k]);
    gradients.emplace(logits_[k], torch::autograd::grad({value}, {logits}, {start}).front());
    losses.push_back(value.detach());  // read at the end of the step, so that the host does not wait here
  }
  return gradients;
}

void StageExecutor::run_backward(const MicroBatch& micro_batch, InFlight& kept, const std::vector<double>& scales,
                                 const MicroBatchSink& sink) {
  const auto& place = mesh_.place;
  if (!place.is_last_stage()) {
    kept.output_gradients = receive(method_.plan_carry(slice_.range().end, micro_batch.shape), /*gradients=*/true,
                                    place.stage_index + 1, dist::Channel::kBackward);
  }
  model::Carry upstream;
  if (kept.pass) {
    upstream = kept.pass->backward(kept.output_gradients, [&](int index, at::Tensor gradient) {
      const double scale = scales.empty() ? 1 : scales[objective_of_[static_cast<std::size_t>(index)]];
      // Not in place: autograd may give one tensor to several.
      if (scale != 1 && gradient.defined()) gradient = gradient / scale;
      sink(micro_batch.index, index, std::move(gradient));
    });
  }
  if (!place.is_first_stage()) {
    send(method_.plan_carry(slice_.range().first, micro_batch.shape), /*gradients=*/true, upstream,
         place.stage_index - 1, dist::Channel::kBackward);
  }
}

std::vector<std::vector<double>> StageExecutor::train_step(dist::ScheduleKind kind,
                                                           const std::vector<MicroBatch>& micro_batches,
                                                           const RandomKey& key, const LossFunction& loss,
                                                           const MicroBatchSink& sink, bool is_training,
                                                           const std::vector<double>& gradient_scales) {
  const auto& place = mesh_.place;
  std::vector<at::Tensor> losses;
  std::map<int, InFlight> in_flight;
  const auto plan =
      dist::plan_schedule(kind, place.num_stages, place.stage_index, static_cast<int>(micro_batches.size()));
  for (const auto& action : plan) {
    const auto& micro_batch = micro_batches[static_cast<std::size_t>(action.micro_batch)];
    if (action.kind == dist::ActionKind::kForward) {
      model::ForwardContext context{is_training, key};
      context.key.micro_batch = static_cast<std::uint64_t>(micro_batch.index);
      auto result = run_forward(micro_batch, context, /*keeps_pass=*/true);
      InFlight kept{std::move(result.pass), {}};
      if (place.is_last_stage()) {
        kept.output_gradients = run_loss(micro_batch, result.outgoing, loss, gradient_scales, losses);
      }
      in_flight.emplace(action.micro_batch, std::move(kept));
    } else {
      auto node = in_flight.extract(action.micro_batch);
      ESPALIER_CHECK(!node.empty(), "the schedule asks for a backward of micro-batch {} before its forward",
                     action.micro_batch);
      run_backward(micro_batch, node.mapped(), gradient_scales, sink);
    }
    settle_sends(sends_.size());  // to wait for one here could be a deadlock: the peer may be sending too
  }
  settle_sends(0);
  return read_losses(losses, logits_.size());
}

void StageExecutor::evaluate(std::size_t count, const std::function<MicroBatch(std::size_t)>& make,
                             const OutputSink& sink) {
  for (std::size_t i = 0; i < count; ++i) {
    const auto micro_batch = make(i);
    const auto result = run_forward(micro_batch, model::ForwardContext{}, /*keeps_pass=*/false);
    if (mesh_.place.is_last_stage()) {
      sink(micro_batch, result.outgoing);
    }
    settle_sends(kMostSendsOfEvaluation);
  }
  settle_sends(0);
}

model::Carry StageExecutor::generate_step(const MicroBatch& micro_batch, model::AttentionCache& cache) {
  model::ForwardContext context;
  context.cache = &cache;
  auto result = run_forward(micro_batch, context, /*keeps_pass=*/false);
  settle_sends(0);
  const auto& shape = micro_batch.shape;
  const auto num_prompts = cache.num_tokens() == 0 ? slice_.num_prompts() : 0;  // read once, before the words
  cache.advance(slice_.backbone().is_encoder_decoder() ? shape.target_tokens : num_prompts + shape.tokens);
  return mesh_.place.is_last_stage() ? std::move(result.outgoing) : model::Carry{};
}

void StageExecutor::settle_sends(std::size_t most) {
  std::erase_if(sends_, [](dist::Work& work) { return work.is_done(); });
  while (sends_.size() > most) {
    sends_.front().wait();
    sends_.erase(sends_.begin());
  }
}

}  // namespace espalier::train
