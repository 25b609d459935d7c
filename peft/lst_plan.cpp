// SPDX-License-Identifier: Apache-2.0
#include "peft/lst_plan.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "common/error.h"
#include "model/slice.h"

namespace espalier::peft {
namespace {

std::int64_t divide(const std::string& what, std::int64_t width, std::int64_t reduction) {
  if (width % reduction != 0) {
    throw ConfigError(
        fmt::format("peft.lst.reduction: expected a divisor of the {} {}, found {}; take one that divides it", what,
                    width, reduction));
  }
  return width / reduction;
}

model::BlockSpec shrink(const model::BlockSpec& spec, std::int64_t reduction) {
  model::BlockSpec side = spec;
  side.width = divide("width", spec.width, reduction);
  side.head_width = divide("head width", spec.head_width, reduction);
  side.feed_forward_width = divide("feed-forward width", spec.feed_forward_width, reduction);
  if (spec.attention_scale != 0 && spec.attention_scale != 1) {
    // A scale that the family wrote out holds 1 / sqrt(head width).
    side.attention_scale = spec.attention_scale * std::sqrt(static_cast<double>(reduction));
  }
  if (side.rotary) {
    divide("number of rotary pairs of a head", static_cast<std::int64_t>(spec.rotary->frequencies.size()), reduction);
    side.rotary->frequencies.clear();
    for (std::size_t i = 0; i < spec.rotary->frequencies.size(); i += static_cast<std::size_t>(reduction)) {
      side.rotary->frequencies.push_back(spec.rotary->frequencies[i]);
    }
  }
  side.relative_bias.reset();
  return side;
}

/// Chain indices of a stack's blocks.
std::vector<std::size_t> blocks_of(const model::Backbone& backbone, bool is_decoder) {
  std::vector<std::size_t> blocks;
  for (const model::LayerPlan& layer : backbone.chain) {
    if (layer.kind == model::LayerKind::kBlock && (layer.stack == model::Stack::kDecoder) == is_decoder) {
      blocks.push_back(layer.index);
    }
  }
  return blocks;
}

/// Marks the kept blocks of one stack, and gives the first of them the stack's table of relative positions.
void keep(const std::string& key, const std::vector<std::int64_t>& wanted, const std::vector<std::size_t>& blocks,
          const LstConfig& config, const model::Backbone& backbone, LstPlan& plan) {
  std::int64_t previous = -1;
  for (const std::int64_t block : wanted) {
    if (block <= previous || block >= static_cast<std::int64_t>(blocks.size())) {
      throw ConfigError(fmt::format("{}: expected block numbers of 0..{} in ascending order, found {} after {}", key,
                                    static_cast<std::int64_t>(blocks.size()) - 1, block,
                                    previous < 0 ? "the start" : std::to_string(previous)));
    }
    plan.is_kept[blocks[static_cast<std::size_t>(block)]] = true;
    previous = block;
  }
  for (const std::size_t index : blocks) {
    plan.is_kept[index] = plan.is_kept[index] || wanted.empty();
  }
  const auto first = std::find_if(blocks.begin(), blocks.end(), [&](std::size_t index) { return plan.is_kept[index]; });
  if (first == blocks.end() || !backbone.chain[blocks.front()].block->relative_bias) {
    return;
  }
  if (config.position_bias == "own") {
    plan.side.chain[*first].block->relative_bias = backbone.chain[blocks.front()].block->relative_bias;
  }
}

}  // namespace

void describe(OptionTable& table, LstConfig& config) {
  table.add("peft.lst.reduction", config.reduction)
      .at_least(1)
      .help(
          "Divides every width of the backbone to give the side network's. Must divide width, head width and "
          "feed-forward width.");
  table.add("peft.lst.layers", config.layers)
      .help(
          "Blocks of the encoder, or of the only stack, that have a side block, 0-based, ascending; empty: all. Fewer "
          "train and keep less.");
  table.add("peft.lst.decoder_layers", config.decoder_layers).help("The same of the decoder of an encoder-decoder.");
  table.add("peft.lst.gate", config.gate)
      .choices({"learned", "one", "none"})
      .help(
          "How a ladder joins the side state. learned: a trained scalar weighs both. one: the side state alone, no "
          "ladders (the pruned network by itself). none: their plain sum.");
  table.add("peft.lst.gate_temperature", config.gate_temperature)
      .above(0)
      .help("Divides the gate's argument: a gate's gradient grows as it falls.");
  table.add("peft.lst.fuse", config.fuse)
      .choices({"before", "after"})
      .help("Where a ladder joins the side state: before the side block or after it.");
  table.add("peft.lst.side_initial", config.side_initial)
      .choices({"fisher", "magnitude", "random"})
      .help(
          "Where side blocks start. fisher: the backbone's blocks pruned to the weights that matter most for the "
          "training data, measured before the first step. magnitude: pruned to the largest weights. random: normal "
          "numbers of the backbone's initial deviation.");
  table.add("peft.lst.fisher_rows", config.fisher_rows)
      .at_least(1)
      .unit("rows")
      .help(
          "Training rows from which side_initial = fisher measures; each costs a forward and a backward of the "
          "whole backbone.");
  table.add("peft.lst.prune_by_head", config.prune_by_head)
      .help("Pruning keeps as many rows of every attention head, in place of the largest over all heads at once.");
  table.add("peft.lst.ladder_bias", config.ladder_bias).help("Ladders (down-projections) have a bias.");
  table.add("peft.lst.position_bias", config.position_bias)
      .choices({"own", "backbone"})
      .help(
          "Relative positions of the side network, where the backbone has them. own: a trained table for each side "
          "stack, that starts as the backbone's. backbone: what the frozen backbone computes.");
  table.add("peft.lst.merge_last", config.merge_last)
      .help("The head reads the up-projected side state and the backbone's own last state, weighed by a trained gate.");
  table.add("peft.lst.distill_weight", config.distill_weight)
      .at_least(0)
      .help(
          "Weight in the loss of the divergence from what the frozen backbone itself predicts, which must be tokens. "
          "0: the backbone is not run above the last ladder.");
  table.add("peft.lst.backbone_dropout", config.backbone_dropout)
      .help("Draw the backbone's own dropout in training. Off: its forward is cheaper and the same in every epoch.");
}

LstPlan plan_lst(const LstConfig& config, const model::Backbone& backbone) {
  LstPlan plan;
  plan.has_ladders = config.gate != "one";
  plan.has_gates = config.gate == "learned";
  plan.is_kept.assign(backbone.chain.size(), false);
  plan.side = backbone;
  plan.side.width = divide("width", backbone.width, config.reduction);
  for (model::LayerPlan& layer : plan.side.chain) {
    if (layer.kind == model::LayerKind::kBlock) {
      layer.block = shrink(*layer.block, config.reduction);
    } else if (layer.kind == model::LayerKind::kFinal) {
      layer.final->width = plan.side.width;
      layer.final->projected_width = 0;  // the up-projection leads straight to what the head reads
    }
  }
  if (!backbone.is_encoder_decoder() && !config.decoder_layers.empty()) {
    throw ConfigError(
        "peft.lst.decoder_layers: expected none, since the backbone has one stack of blocks; name them "
        "in peft.lst.layers");
  }
  keep("peft.lst.layers", config.layers, blocks_of(backbone, /*is_decoder=*/false), config, backbone, plan);
  if (backbone.is_encoder_decoder()) {
    keep("peft.lst.decoder_layers", config.decoder_layers, blocks_of(backbone, /*is_decoder=*/true), config, backbone,
         plan);
  }
  for (const model::LayerPlan& layer : backbone.chain) {
    const bool is_read = plan.is_kept[layer.index] && (plan.has_ladders || config.position_bias == "backbone");
    plan.last_tap_layer = is_read ? static_cast<int>(layer.index) : plan.last_tap_layer;
  }
  if (config.distill_weight > 0 && !backbone.head().is_language_model) {
    throw ConfigError(
        fmt::format("peft.lst.distill_weight: expected 0, since only a language model predicts anything before it is "
                    "trained, found {} with a pooled head",
                    config.distill_weight));
  }
  if (config.merge_last || config.distill_weight > 0) {
    plan.last_tap_layer = backbone.num_layers() - 1;  // the head itself reads it
  }
  return plan;
}

std::int64_t count_lst(const LstConfig& config, const model::Backbone& backbone) {
  const LstPlan plan = plan_lst(config, backbone);
  const std::int64_t side_width = plan.side_width();
  const std::int64_t ladder = backbone.width * side_width + (config.ladder_bias ? side_width : 0);
  std::int64_t count = side_width * backbone.head().width + backbone.head().width;
  count += config.merge_last ? 1 : 0;
  for (const model::LayerPlan& layer : plan.side.chain) {
    if (layer.embedding || layer.patch_embedding) {
      count += backbone.width * side_width + side_width;
    } else if (layer.kind == model::LayerKind::kBlock) {
      count += plan.has_gates ? 1 : 0;
      count += plan.is_kept[layer.index] && plan.has_ladders ? ladder : 0;
    }
    if (plan.is_kept[layer.index] || layer.kind == model::LayerKind::kFinal) {
      model::make_layer(layer)->visit_weights(
          [&](const std::string&, at::Tensor&, const std::vector<std::int64_t>& shape) {
            count += c10::multiply_integers(shape);
          });
    }
  }
  return count;
}

}  // namespace espalier::peft
