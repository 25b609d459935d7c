// SPDX-License-Identifier: Apache-2.0
#include "peft/beside_method.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "model/dropout.h"
#include "model/embedding_layer.h"
#include "peft/autograd_pass.h"

namespace espalier::peft {
namespace {

constexpr std::string_view kPrefix = "side.";

double embedding_dropout(const model::LayerPlan& plan) {
  return plan.embedding ? plan.embedding->dropout : plan.patch_embedding->dropout;
}

}  // namespace

model::CarryPlan BesideMethod::plan_carry(int first_layer, const model::BatchShape& shape) const {
  model::CarryPlan plan;
  if (first_layer <= network_->last_tap_layer()) {
    plan =
        model::plan_chain_carry(slice_.backbone(), first_layer, model::text_only(shape), slice_.options().compute_type);
  }
  for (auto& entry : network_->plan_carry(first_layer, shape)) {
    entry.name.insert(0, kPrefix);
    plan.push_back(std::move(entry));
  }
  return plan;
}

StageResult BesideMethod::forward(model::Carry incoming, const model::StageInputs& inputs,
                                  const model::ForwardContext& context, bool keeps_pass) {
  const at::AutoGradMode grad_mode(keeps_pass);
  model::Carry leaves, backbone, side;
  if (slice_.range().first > 0 && keeps_pass) {
    leaves = make_leaves(incoming, plan_carry(slice_.range().first, {}));
  }
  for (auto& [name, value] : incoming) {
    if (name.starts_with(kPrefix)) {
      side.emplace(name.substr(kPrefix.size()), std::move(value));
    } else {
      backbone.emplace(name, std::move(value));
    }
  }
  incoming.clear();

  const model::StageInputs side_inputs = network_->adapt(inputs);
  const model::StageInputs backbone_inputs = model::text_only(inputs);
  for (std::size_t place = 0; place < slice_.layers().size(); ++place) {
    const model::Layer& layer = *slice_.layers()[place];
    if (layer.plan().kind == model::LayerKind::kHead) {
      at::Tensor logits = network_->read_out(layer, {layer, backbone, {}}, backbone_inputs, context, side);
      return finish_stage({{"logits", std::move(logits)}}, std::move(leaves), trained(), keeps_pass);
    }
    at::Tensor undropped = run_frozen(layer, backbone_inputs, context, backbone);
    if (layer.plan().embedding && layer.plan().embedding->visual && undropped.size(1) > 0) {
      const auto& embedding = static_cast<const model::EmbeddingLayer&>(layer);
      undropped = at::cat({undropped, embedding.embed_visual(inputs, context).to(undropped.scalar_type())}, 1);
    }
    network_->climb(place, {layer, backbone, undropped}, side_inputs, context, side);
    if (static_cast<int>(layer.plan().index) >= network_->last_tap_layer()) {
      backbone.clear();
    }
  }
  model::Carry outgoing;
  for (const auto& entry : plan_carry(slice_.range().end, {})) {
    const bool is_side = entry.name.starts_with(kPrefix);
    outgoing.emplace(entry.name, is_side ? side.at(entry.name.substr(kPrefix.size())) : backbone.at(entry.name));
  }
  return finish_stage(std::move(outgoing), std::move(leaves), trained(), keeps_pass);
}

at::Tensor BesideMethod::run_frozen(const model::Layer& layer, const model::StageInputs& inputs,
                                    const model::ForwardContext& context, model::Carry& carry) const {
  const at::NoGradGuard no_grad;
  const model::LayerPlan& plan = layer.plan();
  model::ForwardContext frozen = context;
  frozen.is_training = context.is_training && network_->has_backbone_dropout();
  const bool is_embedding = plan.embedding || plan.patch_embedding;
  if (!is_embedding) {
    if (static_cast<int>(plan.index) <= network_->last_tap_layer()) {
      layer.forward(carry, inputs, frozen);
    }
    return {};
  }
  // The side network drops the same embedding by a mask of its own, so the layer runs without.
  model::ForwardContext without_dropout = context;
  without_dropout.is_training = false;
  carry.try_emplace("hidden");  // nothing, where a decoder begins above the last tap
  layer.forward(carry, inputs, without_dropout);
  at::Tensor& hidden = carry.at("hidden");
  hidden = hidden.to(slice_.options().compute_type);
  at::Tensor undropped = hidden;
  if (frozen.is_training) {
    const model::LayerPlace place{RandomDomain::kBackbone, plan.index};
    hidden = model::dropout(hidden, embedding_dropout(plan),
                            model::dropout_key(frozen, place, model::DropoutSite::kEmbedding));
  }
  return undropped;
}

}  // namespace espalier::peft
