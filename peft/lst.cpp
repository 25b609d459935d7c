// SPDX-License-Identifier: Apache-2.0
#include "peft/lst.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "model/block_layer.h"
#include "model/dropout.h"
#include "model/final_layer.h"
#include "model/initial.h"
#include "peft/trained_set.h"

namespace espalier::peft {
namespace {

// The projections start small, so that the side network starts near its pruned blocks alone.
constexpr double kProjectionDeviation = 0.01;

at::Tensor drop(const at::Tensor& x, double probability, const model::ForwardContext& context,
                const model::LayerPlan& plan, model::DropoutSite site) {
  return context.is_training ? model::dropout(x, probability, context, {RandomDomain::kSide, plan.index}, site) : x;
}

/// The block that owns the table of relative positions of `layer`'s stack.
const model::LayerPlan& table_owner(const model::Backbone& backbone, const model::LayerPlan& layer) {
  for (const model::LayerPlan& other : backbone.chain) {
    if (other.stack == layer.stack && other.block && other.block->relative_bias) {
      return other;
    }
  }
  throw InternalError("table_owner: no table of relative positions");
}

}  // namespace

LstNetwork::LstNetwork(const LstConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
                       std::uint64_t seed)
    : config_(config), plan_(plan_lst(config, slice.backbone())), slice_(slice), weights_(weights) {
  const model::Backbone& backbone = slice_.backbone();
  std::map<std::uint64_t, PrunedLayer> pruned;
  if (config_.side_initial == "magnitude") {
    // Every stage walks the whole stored backbone, so no stage waits for another and the layout changes nothing.
    std::vector<std::int64_t> kept;
    pruned = prune(
        {0, backbone.num_layers()},
        [&](const auto& layer, const auto& role) { return stored_weight(backbone, layer, role, weights_); }, kept);
  }
  for (const auto& layer : slice_.layers()) {
    const model::LayerPlan& place = layer->plan();
    const model::LayerPlan& side_place = plan_.side.chain[place.index];
    const std::string name = "lst." + place.name;
    SideLayer beside;
    if (place.embedding || place.patch_embedding) {
      const bool is_decoder = place.stack == model::Stack::kDecoder;
      beside.first = add_linear(is_decoder ? "lst.decoder_first" : "lst.first", backbone.width, plan_.side_width(),
                                /*has_bias=*/true, seed);
    } else if (place.kind == model::LayerKind::kBlock) {
      const bool is_kept = plan_.is_kept[place.index];
      if (is_kept && plan_.has_ladders) {
        beside.ladder = add_linear(name + ".down", backbone.width, plan_.side_width(), config_.ladder_bias, seed);
      }
      if (plan_.has_gates) {
        beside.gate = add_gate(name + ".gate", /*is_inert=*/!is_kept);
      }
      if (is_kept) {
        beside.layer = std::make_unique<model::BlockLayer>(side_place, RandomDomain::kSide);
        if (side_place.block->relative_bias) {
          const std::string table = "attention.relative_bias.weight";
          pruned[place.index][table] = stored_weight(backbone, table_owner(backbone, place), table, weights_);
        }
        add_layer(name + ".block", *beside.layer, pruned[place.index], seed);
      }
    } else if (place.kind == model::LayerKind::kFinal) {
      beside.layer = std::make_unique<model::FinalLayer>(side_place, RandomDomain::kSide);
      add_layer(name, *beside.layer, pruned[place.index], seed);
    } else {
      up_ = add_linear("lst.up", plan_.side_width(), place.head->width, /*has_bias=*/true, seed);
      if (config_.merge_last) {
        merge_gate_ = add_gate("lst.merge_gate", /*is_inert=*/false);
      }
    }
    train_task_weights(slice_, *layer, weights, trained_);
    side_layers_.push_back(std::move(beside));
  }
}

std::map<std::uint64_t, PrunedLayer> LstNetwork::prune(model::LayerRange range, const WeightReader& importance,
                                                       std::vector<std::int64_t>& kept) const {
  const auto read = [&](const model::LayerPlan& layer, const std::string& role) {
    return stored_weight(slice_.backbone(), layer, role, weights_);
  };
  const auto stands_here = [&](const model::LayerPlan& layer) {
    const bool is_wanted = plan_.is_kept[layer.index] || layer.kind == model::LayerKind::kFinal;
    return is_wanted && slice_.range().contains(static_cast<int>(layer.index));
  };
  return prune_layers(slice_.backbone(), range, {config_.reduction, config_.prune_by_head}, read, importance,
                      stands_here, kept);
}

at::Tensor LstNetwork::start(const WeightReader& importance, const at::Tensor& below) {
  std::vector<std::int64_t> kept;
  if (below.defined()) {
    kept.assign(below.const_data_ptr<std::int64_t>(), below.const_data_ptr<std::int64_t>() + below.numel());
  }
  const auto pruned = prune(slice_.range(), importance, kept);
  for (std::size_t place = 0; place < side_layers_.size(); ++place) {
    const auto found = pruned.find(slice_.layers()[place]->plan().index);
    if (found != pruned.end()) {
      side_layers_[place].layer->visit_weights(
          [&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& /*shape*/) {
            if (const auto value = found->second.find(role); value != found->second.end()) {
              slot.detach().copy_(value->second);
            }
          });
    }
  }
  return at::tensor(kept, at::kLong);
}

at::Tensor LstNetwork::add(const std::string& name, const at::Tensor& value) {
  trained_.push_back(make_trained(name, value, slice_.options().device));
  return trained_.back().value;
}

at::Tensor LstNetwork::add_gate(const std::string& name, bool is_inert) {
  at::Tensor gate = add(name, at::zeros({1}));  // sigmoid(0): both count alike at the start
  trained_.back().decays = false;
  trained_.back().is_inert = is_inert;
  return gate;
}

model::Linear LstNetwork::add_linear(const std::string& name, std::int64_t in_features, std::int64_t out_features,
                                     bool has_bias, std::uint64_t seed) {
  model::Linear linear(in_features, out_features, has_bias);
  linear.weight = add(name + ".weight",
                      model::normal_by_name({out_features, in_features}, kProjectionDeviation, seed, name + ".weight"));
  if (has_bias) {
    linear.bias = add(name + ".bias", at::zeros({out_features}));
  }
  return linear;
}

void LstNetwork::add_layer(const std::string& name, model::Layer& layer, const PrunedLayer& pruned,
                           std::uint64_t seed) {
  layer.visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& shape) {
    const std::string full_name = name + "." + role;
    if (const auto kept = pruned.find(role); kept != pruned.end()) {
      ESPALIER_CHECK(kept->second.sizes().vec() == shape, "{}", full_name);
      slot = add(full_name, kept->second);
    } else if (shape.size() > 1) {
      slot = add(full_name, model::normal_by_name(shape, slice_.backbone().initializer_range, seed, full_name));
    } else {
      slot = add(full_name, role.ends_with("norm.weight") ? at::ones(shape) : at::zeros(shape));
    }
  });
}

at::ScalarType LstNetwork::side_type() const {
  // The side network is cheap and carries all gradients: it never computes in less than fp32.
  return at::promote_types(slice_.options().compute_type, at::kFloat);
}

model::CarryPlan LstNetwork::plan_carry(int first_layer, const model::BatchShape& shape) const {
  const auto has_kept = [&](int first, int end) {
    const auto& chain = slice_.backbone().chain;
    return std::any_of(chain.begin() + first, chain.begin() + end, [&](const model::LayerPlan& layer) {
      return plan_.is_kept[layer.index] && layer.stack == slice_.backbone().layer(first_layer).stack;
    });
  };
  // What no side block above reads would come back without a gradient.
  const bool is_read = has_kept(first_layer, slice_.backbone().num_layers());
  const bool has_table = is_read && config_.position_bias == "own" && has_kept(0, first_layer);
  model::CarryPlan plan;
  for (model::CarryEntry& entry : model::plan_chain_carry(plan_.side, first_layer, shape, side_type())) {
    if (entry.name == "position_bias" ? has_table : entry.name == "hidden" || is_read) {
      entry.needs_gradient = true;
      plan.push_back(std::move(entry));
    }
  }
  return plan;
}

void LstNetwork::visit_weights(const std::function<void(at::Tensor& slot)>& visit) {
  for (SideLayer& beside : side_layers_) {
    for (at::Tensor* slot :
         {&beside.first.weight, &beside.first.bias, &beside.ladder.weight, &beside.ladder.bias, &beside.gate}) {
      if (slot->defined()) {
        visit(*slot);
      }
    }
    if (beside.layer != nullptr) {
      beside.layer->visit_weights([&](const auto& /*role*/, at::Tensor& slot, const auto& /*shape*/) { visit(slot); });
    }
  }
}

model::StageInputs LstNetwork::adapt(const model::StageInputs& inputs) const {
  model::StageInputs side = inputs;
  for (at::Tensor* bias : {&side.attention_bias, &side.decoder_attention_bias}) {
    *bias = bias->defined() ? bias->to(side_type()) : *bias;
  }
  if (inputs.rotary_cos.defined()) {
    // A narrower head turns with every r-th frequency: those of rotary positions at its own width.
    const auto every = [&](const at::Tensor& angles) {
      return angles.slice(-1, 0, angles.size(-1), config_.reduction).to(side_type());
    };
    side.rotary_cos = every(inputs.rotary_cos);
    side.rotary_sin = every(inputs.rotary_sin);
  }
  return side;
}

void LstNetwork::climb(std::size_t place, const Tap& tap, const model::StageInputs& inputs,
                       const model::ForwardContext& context, model::Carry& side) const {
  const SideLayer& beside = side_layers_[place];
  const model::LayerPlan& plan = tap.layer.plan();
  if (tap.undropped.defined()) {
    if (plan.stack == model::Stack::kDecoder) {
      side["memory"] = side.at("hidden");
      side.erase("position_bias");
    }
    const double probability = plan.embedding ? plan.embedding->dropout : plan.patch_embedding->dropout;
    const at::Tensor read = drop(tap.undropped, probability, context, plan, model::DropoutSite::kSideInput);
    side["hidden"] = beside.first.forward(read, context).to(side_type());  // [B, T, S]
    return;
  }
  if (beside.layer == nullptr) {
    return;
  }
  at::Tensor& hidden = side.at("hidden");
  const bool has_ladder = plan.block && plan_.has_ladders;
  if (plan.block && plan.block->has_position_bias && config_.position_bias == "backbone") {
    // The backbone's own bias knows words alone: images that stand behind them have none.
    const at::Tensor& bias = tap.backbone.at("position_bias");  // [1, H, T, T]
    const std::int64_t num_visual = hidden.size(-2) - bias.size(-1);
    const bool has_images = num_visual > 0 && plan.stack != model::Stack::kDecoder;
    side["position_bias"] = has_images ? at::constant_pad_nd(bias, {0, num_visual, 0, num_visual}) : bias;
  }
  if (has_ladder && config_.fuse == "before") {
    hidden = join_ladder(beside, tap, context, hidden);
  }
  beside.layer->forward(side, inputs, context);
  if (has_ladder && config_.fuse == "after") {
    hidden = join_ladder(beside, tap, context, hidden);
  }
}

at::Tensor LstNetwork::mix(const at::Tensor& gate, const at::Tensor& side, const at::Tensor& other) const {
  const at::Tensor share = at::sigmoid(gate.to(side.scalar_type()) / config_.gate_temperature);
  return at::lerp(other, side, gate.dim() == 1 ? share : share.view({-1, 1, 1, 1}));
}

at::Tensor LstNetwork::join_ladder(const SideLayer& beside, const Tap& tap, const model::ForwardContext& context,
                                   const at::Tensor& side) const {
  at::Tensor ladder = beside.ladder.forward(tap.backbone.at("hidden"), context).to(side_type());  // [B, T, S]
  // The backbone says nothing of the images that stand behind the text.
  if (const std::int64_t num_visual = side.size(1) - ladder.size(1); num_visual > 0) {
    ladder = at::constant_pad_nd(ladder, {0, 0, 0, num_visual});
  }
  return plan_.has_gates ? mix(beside.gate, side, ladder) : side + ladder;
}

at::Tensor LstNetwork::read_out(const model::Layer& head, const Tap& tap, const model::StageInputs& inputs,
                                const model::ForwardContext& context, const model::Carry& side) const {
  const model::HeadSpec& spec = *head.plan().head;
  // A head that reads the first token alone needs no other token projected.
  const bool reads_first_token = !spec.is_language_model && spec.pooling == model::Pooling::kFirstToken;
  const auto read = [&](const at::Tensor& state) { return reads_first_token ? state.narrow(1, 0, 1) : state; };

  at::Tensor state = read(side.at("hidden"));
  const model::LayerPlan& below = plan_.side.chain[head.plan().index - 1];
  if (below.block) {
    // No final layer has dropped it.
    state = drop(state, below.block->hidden_dropout, context, head.plan(), model::DropoutSite::kSideOutput);
  }
  state = up_.forward(state, context);
  if (config_.merge_last) {
    state = mix(merge_gate_, state, read(tap.backbone.at("hidden")).to(state.scalar_type()));
  }
  model::Carry carry{{"hidden", spec.is_language_model ? state.to(slice_.options().compute_type) : state}};
  head.forward(carry, inputs, context);
  return carry.at("logits");
}

nlohmann::json LstNetwork::describe_export() const {
  std::vector<std::int64_t> kept, decoder_kept;
  for (const model::LayerPlan& layer : slice_.backbone().chain) {
    if (plan_.is_kept[layer.index]) {
      (layer.stack == model::Stack::kDecoder ? decoder_kept : kept).push_back(layer.number);
    }
  }
  return {{"reduction", config_.reduction},
          {"layers", kept},
          {"decoder_layers", decoder_kept},
          {"gate", config_.gate},
          {"gate_temperature", config_.gate_temperature},
          {"fuse", config_.fuse},
          {"position_bias", config_.position_bias},
          {"merge_last", config_.merge_last},
          {"ladder_bias", config_.ladder_bias},
          {"backbone_dropout", config_.backbone_dropout}};
}

}  // namespace espalier::peft
