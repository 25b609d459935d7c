// SPDX-License-Identifier: Apache-2.0
#include "peft/method.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include "common/error.h"
#include "peft/full.h"
#include "peft/lora.h"
#include "peft/lst.h"
#include "peft/probe.h"

namespace espalier::peft {
void describe(OptionTable& table, MethodConfig& config) {
  table.add("peft.method", config.method)
      .choices({"lst", "lora", "full", "probe"})
      .help(
          "What trains. lst: a narrow network beside the frozen backbone. lora: low-rank factors on linears of the "
          "backbone. "
          "full: everything. probe: the task head alone. The head trains in all of them.");

  table.add("peft.lst.reduction", config.lst.reduction)
      .at_least(1)
      .help(
          "Divides every width of the backbone to give the side network's. Must divide width, head width and "
          "feed-forward width.");
  table.add("peft.lst.layers", config.lst.layers)
      .help("Blocks that have a side block, 0-based, ascending; empty: all. Fewer train and keep less.");
  table.add("peft.lst.gate", config.lst.gate)
      .choices({"learned", "one", "none"})
      .help(
          "How a ladder joins the side state. learned: a trained scalar weighs both. one: the side state alone, no "
          "ladders "
          "(the pruned network by itself). none: their plain sum.");
  table.add("peft.lst.gate_temperature", config.lst.gate_temperature)
      .above(0)
      .help("Divides the gate's argument: a gate's gradient grows as it falls.");
  table.add("peft.lst.side_initial", config.lst.side_initial)
      .choices({"magnitude", "random"})
      .help(
          "Where side blocks start. magnitude: the backbone's blocks pruned to their largest weights. random: normal "
          "numbers of the "
          "backbone's initial deviation.");
  table.add("peft.lst.ladder_bias", config.lst.ladder_bias).help("Ladders (down-projections) have a bias.");
  table.add("peft.lst.backbone_dropout", config.lst.backbone_dropout)
      .help("Draw the backbone's own dropout in training. Off: its forward is cheaper and the same in every epoch.");

  table.add("peft.lora.rank", config.lora.rank).at_least(1).help("Rank of the factors. Trained scalars grow with it.");
  table.add("peft.lora.alpha", config.lora.alpha)
      .above(0)
      .help("The product of the factors is scaled by alpha / rank.");
  table.add("peft.lora.dropout", config.lora.dropout).at_least(0).below(1).help("Dropout on what the factors read.");
  table.add("peft.lora.targets", config.lora.targets)
      .help(
          "Roles of the linears that get factors, in every block: attention.query, attention.key, attention.value, "
          "attention.output, "
          "feed_forward.up, feed_forward.down.");
}

std::unique_ptr<Method> make_method(const MethodConfig& config, model::StageSlice& slice,
                                    const model::WeightSource& weights, std::uint64_t seed) {
  if (config.method == "lst") {
    return std::make_unique<LstMethod>(config.lst, slice, weights, seed);
  }
  if (config.method == "lora") {
    return std::make_unique<LoraMethod>(config.lora, slice, weights, seed);
  }
  if (config.method == "full") {
    return std::make_unique<FullMethod>(slice, weights);
  }
  if (config.method == "probe") {
    return std::make_unique<ProbeMethod>(slice, weights);
  }
  throw ConfigError(fmt::format("peft.method: expected lst, lora, full or probe, found '{}'", config.method));
}

TrainedCount count_trained(const MethodConfig& config, const model::Backbone& backbone) {
  TrainedCount count;
  model::visit_stored_tensors(backbone, [&](const model::LayerPlan& layer, const model::StoredWeight& stored,
                                            const std::vector<std::int64_t>& shape) {
    const std::int64_t elements = stored.is_buffer ? 0 : c10::multiply_integers(shape);
    if (layer.head && !layer.head->is_language_model) {
      count.head += elements;
    } else if (config.method == "full") {
      count.method += elements;
    }
  });
  if (config.method == "lst") {
    count.method = count_lst(config.lst, backbone);
  } else if (config.method == "lora") {
    count.method = count_lora(config.lora, backbone);
  }
  return count;
}

}  // namespace espalier::peft
