// SPDX-License-Identifier: Apache-2.0
// B batch, T tokens, D backbone width, S side width
#include "peft/lst.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "model/dropout.h"
#include "model/initial.h"
#include "peft/autograd_pass.h"
#include "peft/lst_pruning.h"
#include "peft/trained_set.h"

namespace espalier::peft {
namespace {

// The projections start small, so that the side network starts near its pruned blocks alone.
constexpr double kProjectionDeviation = 0.01;

std::int64_t divide(const std::string& what, std::int64_t width, std::int64_t reduction) {
  if (width % reduction != 0) {
    throw ConfigError(
        fmt::format("peft.lst.reduction: expected a divisor of the {} {}, found {}; take one that divides it", what,
                    width, reduction));
  }
  return width / reduction;
}

model::BlockSpec shrink(const model::BlockSpec& spec, std::int64_t reduction) {
  const bool is_encoder = spec.norm_place == model::NormPlace::kAfter &&
                          spec.norm_kind == model::NormKind::kLayerNorm && !spec.is_gated &&
                          !spec.has_cross_attention && !spec.is_causal;
  const bool has_plain_attention =
      spec.num_key_value_heads == spec.num_heads && spec.has_attention_bias && spec.has_output_bias;
  if (!is_encoder || !has_plain_attention || !spec.has_feed_forward_bias) {
    throw ConfigError(
        "peft.method=lst: expected a post-norm encoder backbone with biases and without gated feed-forward, "
        "cross-attention or shared key/value heads (BERT, RoBERTa), found another kind of block; choose another "
        "method");
  }
  model::BlockSpec side = spec;
  side.width = divide("width", spec.width, reduction);
  side.head_width = divide("head width", spec.head_width, reduction);
  side.feed_forward_width = divide("feed-forward width", spec.feed_forward_width, reduction);
  return side;
}

/// Runs a frozen layer on `carry` without a graph.
void run_frozen(const model::Layer& layer, const model::StageInputs& inputs, const model::ForwardContext& context,
                model::Carry& carry) {
  const at::NoGradGuard no_grad;
  layer.forward(carry, inputs, context);
}

at::Tensor drop(const at::Tensor& x, double probability, const model::ForwardContext& context,
                const model::LayerPlace& place, model::DropoutSite site) {
  return context.is_training ? model::dropout(x, probability, model::dropout_key(context, place, site)) : x;
}

}  // namespace

void describe(OptionTable& table, LstConfig& config) {
  table.add("peft.lst.reduction", config.reduction)
      .at_least(1)
      .help(
          "Divides every width of the backbone to give the side network's. Must divide width, head width and "
          "feed-forward width.");
  table.add("peft.lst.layers", config.layers)
      .help("Blocks that have a side block, 0-based, ascending; empty: all. Fewer train and keep less.");
  table.add("peft.lst.gate", config.gate)
      .choices({"learned", "one", "none"})
      .help(
          "How a ladder joins the side state. learned: a trained scalar weighs both. one: the side state alone, no "
          "ladders "
          "(the pruned network by itself). none: their plain sum.");
  table.add("peft.lst.gate_temperature", config.gate_temperature)
      .above(0)
      .help("Divides the gate's argument: a gate's gradient grows as it falls.");
  table.add("peft.lst.side_initial", config.side_initial)
      .choices({"magnitude", "random"})
      .help(
          "Where side blocks start. magnitude: the backbone's blocks pruned to their largest weights. random: normal "
          "numbers of the "
          "backbone's initial deviation.");
  table.add("peft.lst.ladder_bias", config.ladder_bias).help("Ladders (down-projections) have a bias.");
  table.add("peft.lst.backbone_dropout", config.backbone_dropout)
      .help("Draw the backbone's own dropout in training. Off: its forward is cheaper and the same in every epoch.");
}

LstPlan plan_lst(const LstConfig& config, const model::Backbone& backbone) {
  if (backbone.is_encoder_decoder() || backbone.head().is_language_model || !backbone.chain.front().embedding ||
      backbone.chain[backbone.chain.size() - 2].kind != model::LayerKind::kBlock) {
    throw ConfigError(
        "peft.method=lst: expected an encoder with token embeddings and a pooled head (BERT, RoBERTa), found another "
        "kind of backbone; choose another method");
  }
  LstPlan plan;
  plan.has_ladders = config.gate != "one";
  plan.has_gates = config.gate == "learned";
  plan.is_kept.assign(backbone.chain.size(), false);
  std::vector<std::uint64_t> blocks;
  for (const model::LayerPlan& layer : backbone.chain) {
    if (layer.kind == model::LayerKind::kBlock) {
      plan.side_block = shrink(*layer.block, config.reduction);
      blocks.push_back(layer.index);
      plan.is_kept[layer.index] = config.layers.empty();
    }
  }
  std::int64_t previous = -1;
  for (const std::int64_t block : config.layers) {
    if (block <= previous || block >= static_cast<std::int64_t>(blocks.size())) {
      throw ConfigError(
          fmt::format("peft.lst.layers: expected block numbers of 0..{} in ascending order, found {} after {}",
                      blocks.size() - 1, block, previous < 0 ? "the start" : std::to_string(previous)));
    }
    plan.is_kept[blocks[static_cast<std::size_t>(block)]] = true;
    previous = block;
  }
  if (plan.has_ladders) {
    for (const std::uint64_t index : blocks) {
      plan.last_tap_layer = plan.is_kept[index] ? static_cast<int>(index) : plan.last_tap_layer;
    }
  }
  return plan;
}

std::int64_t count_lst(const LstConfig& config, const model::Backbone& backbone) {
  const LstPlan plan = plan_lst(config, backbone);
  const std::int64_t width = backbone.width;
  const std::int64_t side_width = plan.side_block.width;
  std::int64_t block_elements = 0;
  model::TransformerBlock(plan.side_block, {})
      .visit_weights([&](const std::string&, at::Tensor&, const std::vector<std::int64_t>& shape) {
        block_elements += c10::multiply_integers(shape);
      });
  if (plan.has_ladders) {
    block_elements += width * side_width + (config.ladder_bias ? side_width : 0);
  }
  const std::int64_t first = width * side_width + side_width;
  const std::int64_t up = side_width * width + width;
  const auto num_kept = std::count(plan.is_kept.begin(), plan.is_kept.end(), true);
  return first + num_kept * block_elements + (plan.has_gates ? backbone.num_blocks() : 0) + up;
}

LstMethod::LstMethod(const LstConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
                     std::uint64_t seed)
    : config_(config), plan_(plan_lst(config, slice.backbone())), slice_(slice) {
  const model::Backbone& backbone = slice_.backbone();
  const std::int64_t side_width = plan_.side_block.width;
  const auto stands_here = [&](const model::LayerPlan& layer) {
    return plan_.is_kept[layer.index] && slice_.range().contains(static_cast<int>(layer.index));
  };
  std::map<std::uint64_t, PrunedBlock> pruned;
  if (config_.side_initial == "magnitude") {
    // Every stage walks the whole stored backbone, so no stage waits for another and the layout changes nothing.
    const auto read = [&](const model::LayerPlan& layer, const std::string& role) {
      return stored_weight(backbone, layer, role, weights);
    };
    pruned = prune_blocks(backbone, config_.reduction, read, stands_here);
  }
  for (const auto& layer : slice_.layers()) {
    const model::LayerPlan& place = layer->plan();
    const std::string name = "lst." + place.name;
    SideLayer beside;
    if (place.kind == model::LayerKind::kEmbedding) {
      first_ = add_linear("lst.first", backbone.width, side_width, /*has_bias=*/true, seed);
    } else if (place.kind == model::LayerKind::kBlock) {
      const bool is_kept = plan_.is_kept[place.index];
      if (is_kept && plan_.has_ladders) {
        beside.ladder = add_linear(name + ".down", backbone.width, side_width, config_.ladder_bias, seed);
      }
      if (plan_.has_gates) {
        beside.gate = add(name + ".gate", at::zeros({1}));  // sigmoid(0): side and ladder count alike at the start
        trained_.back().decays = false;
        trained_.back().is_inert = !is_kept;
      }
      if (is_kept) {
        beside.block = std::make_unique<model::TransformerBlock>(plan_.side_block,
                                                                 model::LayerPlace{RandomDomain::kSide, place.index});
        add_block(name + ".block", *beside.block, pruned[place.index], seed);
      }
    } else {
      up_ = add_linear("lst.up", side_width, backbone.width, /*has_bias=*/true, seed);
      train_layer(slice_, *layer, weights, /*copies=*/{}, trained_);
    }
    side_layers_.push_back(std::move(beside));
  }
}

at::Tensor LstMethod::add(const std::string& name, const at::Tensor& value) {
  trained_.push_back(make_trained(name, value, slice_.options().device));
  return trained_.back().value;
}

model::Linear LstMethod::add_linear(const std::string& name, std::int64_t in_features, std::int64_t out_features,
                                    bool has_bias, std::uint64_t seed) {
  model::Linear linear(in_features, out_features, has_bias);
  linear.weight = add(name + ".weight",
                      model::normal_by_name({out_features, in_features}, kProjectionDeviation, seed, name + ".weight"));
  if (has_bias) {
    linear.bias = add(name + ".bias", at::zeros({out_features}));
  }
  return linear;
}

void LstMethod::add_block(const std::string& name, model::TransformerBlock& block, const PrunedBlock& pruned,
                          std::uint64_t seed) {
  block.visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& shape) {
    const std::string full_name = name + "." + role;
    if (config_.side_initial == "magnitude") {
      const at::Tensor& value = pruned.at(role);
      ESPALIER_CHECK(value.sizes().vec() == shape, "{}", full_name);
      slot = add(full_name, value);
    } else if (shape.size() > 1) {
      slot = add(full_name, model::normal_by_name(shape, slice_.backbone().initializer_range, seed, full_name));
    } else {
      slot = add(full_name, role.ends_with("norm.weight") ? at::ones(shape) : at::zeros(shape));
    }
  });
}

at::ScalarType LstMethod::side_type() const {
  // The side network is cheap and carries all gradients: it never computes in less than fp32.
  return at::promote_types(slice_.options().compute_type, at::kFloat);
}

model::CarryPlan LstMethod::plan_carry(int first_layer, const model::BatchShape& shape) const {
  model::CarryPlan plan;
  if (first_layer <= plan_.last_tap_layer) {
    plan.push_back({.name = "hidden",
                    .sizes = {shape.rows, shape.tokens, slice_.backbone().width},
                    .dtype = slice_.options().compute_type,
                    .needs_gradient = false});
  }
  plan.push_back({.name = "side",
                  .sizes = {shape.rows, shape.tokens, plan_.side_block.width},
                  .dtype = side_type(),
                  .needs_gradient = true});
  return plan;
}

StageResult LstMethod::forward(model::Carry incoming, const model::StageInputs& inputs,
                               const model::ForwardContext& context, bool keeps_pass) {
  const at::AutoGradMode grad_mode(keeps_pass);
  const model::LayerRange range = slice_.range();
  model::Carry leaves;
  Lanes lanes;
  if (range.first > 0) {
    if (keeps_pass) {
      leaves = make_leaves(incoming, plan_carry(range.first, {}));
    }
    lanes.side = incoming.at("side");
    if (range.first <= plan_.last_tap_layer) {
      lanes.backbone.emplace("hidden", std::move(incoming.at("hidden")));
    }
    incoming.clear();
  }
  lanes.side_inputs.attention_bias =
      inputs.attention_bias.defined() ? inputs.attention_bias.to(side_type()) : inputs.attention_bias;

  for (std::size_t i = 0; i < side_layers_.size(); ++i) {
    const model::Layer& layer = *slice_.layers()[i];
    if (layer.plan().kind == model::LayerKind::kEmbedding) {
      embed(layer, inputs, context, lanes);
    } else if (layer.plan().kind == model::LayerKind::kBlock) {
      climb(layer, side_layers_[i], inputs, context, lanes);
    } else {
      return finish_stage({{"logits", read_out(layer, inputs, context, lanes.side)}}, std::move(leaves), trained_,
                          keeps_pass);
    }
  }
  model::Carry outgoing = std::move(lanes.backbone);
  outgoing.emplace("side", std::move(lanes.side));
  return finish_stage(std::move(outgoing), std::move(leaves), trained_, keeps_pass);
}

model::ForwardContext LstMethod::frozen_context(const model::ForwardContext& context) const {
  model::ForwardContext frozen = context;
  frozen.is_training = context.is_training && config_.backbone_dropout;
  return frozen;
}

void LstMethod::embed(const model::Layer& layer, const model::StageInputs& inputs, const model::ForwardContext& context,
                      Lanes& lanes) const {
  model::ForwardContext without_dropout = context;
  without_dropout.is_training = false;
  run_frozen(layer, inputs, without_dropout, lanes.backbone);
  at::Tensor& hidden = lanes.backbone.at("hidden");  // [B, T, D]

  // Both lanes read the same embedding through masks of their own.
  const double probability = layer.plan().embedding->dropout;
  const std::uint64_t index = layer.plan().index;
  const at::Tensor input =
      drop(hidden, probability, context, {RandomDomain::kSide, index}, model::DropoutSite::kSideInput);
  lanes.side = first_.forward(input, context).to(side_type());  // [B, T, S]
  hidden = drop(hidden, probability, frozen_context(context), {RandomDomain::kBackbone, index},
                model::DropoutSite::kEmbedding);
  release_above(layer, lanes);
}

void LstMethod::climb(const model::Layer& layer, const SideLayer& beside, const model::StageInputs& inputs,
                      const model::ForwardContext& context, Lanes& lanes) const {
  if (static_cast<int>(layer.plan().index) <= plan_.last_tap_layer) {
    run_frozen(layer, inputs, frozen_context(context), lanes.backbone);
  }
  if (beside.block == nullptr) {
    return;
  }
  if (plan_.has_ladders) {
    const at::Tensor ladder = beside.ladder.forward(lanes.backbone.at("hidden"), context).to(side_type());  // [B, T, S]
    if (plan_.has_gates) {
      const at::Tensor gate = at::sigmoid(beside.gate.to(side_type()) / config_.gate_temperature);
      lanes.side = at::lerp(ladder, lanes.side, gate);  // gate * side + (1 - gate) * ladder
    } else {
      lanes.side = lanes.side + ladder;
    }
  }
  release_above(layer, lanes);
  lanes.side = beside.block->forward(lanes.side, lanes.side_inputs, context);
}

void LstMethod::release_above(const model::Layer& layer, Lanes& lanes) const {
  if (static_cast<int>(layer.plan().index) >= plan_.last_tap_layer) {
    lanes.backbone.clear();
  }
}

at::Tensor LstMethod::read_out(const model::Layer& head, const model::StageInputs& inputs,
                               const model::ForwardContext& context, const at::Tensor& side) const {
  // A head that reads the first token alone needs no other token projected.
  const bool reads_first_token = head.plan().head->pooling == model::Pooling::kFirstToken;
  const at::Tensor read = reads_first_token ? side.narrow(/*dim=*/1, 0, 1) : side;
  const at::Tensor dropped = drop(read, plan_.side_block.hidden_dropout, context,
                                  {RandomDomain::kSide, head.plan().index}, model::DropoutSite::kSideOutput);
  model::Carry carry{{"hidden", up_.forward(dropped, context)}};
  head.forward(carry, inputs, context);
  return carry.at("logits");
}

std::vector<std::pair<std::string, std::string>> LstMethod::describe_export() const {
  std::vector<std::int64_t> kept;
  std::int64_t block = 0;
  for (const model::LayerPlan& layer : slice_.backbone().chain) {
    if (layer.kind == model::LayerKind::kBlock) {
      if (plan_.is_kept[layer.index]) {
        kept.push_back(block);
      }
      ++block;
    }
  }
  return {{"reduction", nlohmann::json(config_.reduction).dump()},
          {"layers", nlohmann::json(kept).dump()},
          {"gate", nlohmann::json(config_.gate).dump()},
          {"gate_temperature", nlohmann::json(config_.gate_temperature).dump()},
          {"ladder_bias", nlohmann::json(config_.ladder_bias).dump()},
          {"backbone_dropout", nlohmann::json(config_.backbone_dropout).dump()}};
}

}  // namespace espalier::peft
