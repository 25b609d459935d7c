// SPDX-License-Identifier: Apache-2.0
#include "peft/lora.h"

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/error.h"
#include "model/dropout.h"
#include "model/initial.h"
#include "peft/bitfit.h"
#include "peft/trained_set.h"

namespace espalier::peft {
namespace {

constexpr const char* kTargetsKey = "peft.lora.targets";

bool trains_bias(const LoraConfig& config, const model::Backbone& backbone, const model::LayerPlan& layer,
                 const std::string& role, const std::vector<std::int64_t>& shape) {
  if (config.biases == "none" || !is_backbone_bias(backbone, layer, role, shape)) {
    return false;
  }
  if (config.biases == "all") {
    return true;
  }
  const auto targets = layer.block ? plan_lora(config, layer) : std::vector<LinearTarget>();
  return std::any_of(targets.begin(), targets.end(),
                     [&](const LinearTarget& target) { return role == target.role + ".bias"; });
}

int first_trained_layer(const LoraConfig& config, const model::Backbone& backbone) {
  return config.biases == "all" ? first_trained_by_biases("peft.lora.biases=all", backbone)
                                : first_trained_by_blocks(backbone);
}

}  // namespace

void describe(OptionTable& table, LoraConfig& config) {
  table.add("peft.lora.rank", config.rank).at_least(1).help("Rank of the factors. Trained scalars grow with it.");
  table.add("peft.lora.alpha", config.alpha).above(0).help("The product of the factors is scaled by alpha / rank.");
  table.add("peft.lora.dropout", config.dropout).at_least(0).below(1).help("Dropout on what the factors read.");
  table.add("peft.lora.rank_stabilized", config.rank_stabilized)
      .help("The scale is alpha / sqrt(rank), which lets large ranks learn as fast as small ones.");
  table.add(kTargetsKey, config.targets)
      .help(
          "Roles of the linears that get factors, in every block: attention.query, attention.key, attention.value, "
          "attention.output, feed_forward.up, feed_forward.down; or linears of single blocks: "
          "encoder.3.attention.query.");
  table.add("peft.lora.biases", config.biases)
      .choices({"none", "targets", "all"})
      .help("Biases that train too. targets: those of the linears with factors. all: every bias of the backbone.");
}

std::vector<LinearTarget> plan_lora(const LoraConfig& config, const model::LayerPlan& layer) {
  std::vector<LinearTarget> targets = plan_targets(config.targets, *layer.block, layer.name);
  for (const LinearTarget& target : targets) {
    if (config.rank > target.smaller_width()) {
      throw ConfigError(
          fmt::format("peft.lora.rank: expected at most {} (the smaller width of {}), found {}; lower it or take {} "
                      "out of peft.lora.targets",
                      target.smaller_width(), target.role, config.rank, target.role));
    }
  }
  return targets;
}

double lora_scale(const LoraConfig& config) {
  const auto rank = static_cast<double>(config.rank);
  return config.alpha / (config.rank_stabilized ? std::sqrt(rank) : rank);
}

std::int64_t count_lora(const LoraConfig& config, const model::Backbone& backbone) {
  check_targets(kTargetsKey, config.targets, backbone);
  std::int64_t count = 0;
  for (const model::LayerPlan& layer : backbone.chain) {
    if (layer.kind == model::LayerKind::kBlock) {
      for (const LinearTarget& target : plan_lora(config, layer)) {
        count += config.rank * (target.in_features + target.out_features);
      }
    }
  }
  model::visit_planned_weights(
      backbone, [&](const model::LayerPlan& layer, const std::string& role, const std::vector<std::int64_t>& shape) {
        count += trains_bias(config, backbone, layer, role, shape) ? c10::multiply_integers(shape) : 0;
      });
  return count;
}

at::Tensor LoraDelta::forward(const at::Tensor& x, const model::ForwardContext& context) const {
  const at::Tensor dropped =
      context.is_training ? model::dropout(x, dropout, model::dropout_key(context, place, site)) : x;
  // Two thin products; the scale goes onto the narrow one.
  const at::Tensor narrow = at::linear(dropped, a.to(x.scalar_type())) * scale;  // [..., R]
  return at::linear(narrow, b.to(x.scalar_type()));                              // [..., out]
}

LoraMethod::LoraMethod(const LoraConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
                       std::uint64_t seed)
    : ChainMethod(slice, {.first_trained_layer = first_trained_layer(config, slice.backbone())}), config_(config) {
  check_targets(kTargetsKey, config_.targets, slice.backbone());
  const at::Device device = slice.options().device;
  for (const auto& layer : slice.layers()) {
    layer->visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& shape) {
      if (trains_bias(config_, slice.backbone(), layer->plan(), role, shape)) {
        own_weight(slice, layer->plan(), role, weights, slot);
        trained().push_back({.name = layer->plan().name + "." + role, .value = slot, .decays = false});
      }
    });
    if (layer->block() == nullptr) {
      train_task_weights(slice, *layer, weights, trained());
      continue;
    }
    std::map<std::string, std::shared_ptr<const LoraDelta>> deltas;
    for (const LinearTarget& target : plan_lora(config_, layer->plan())) {
      const std::string name = layer->plan().name + "." + target.role;
      // Kaiming-uniform with a = sqrt(5), as the reference implementations start: variance 1 / (3 in).
      const double bound = 1.0 / std::sqrt(static_cast<double>(target.in_features));
      auto delta = std::make_shared<LoraDelta>();
      delta->scale = lora_scale(config_);
      delta->dropout = config_.dropout;
      delta->place = {RandomDomain::kAdapter, layer->plan().index};
      delta->site =
          static_cast<model::DropoutSite>(static_cast<std::uint64_t>(model::DropoutSite::kFactor) + target.linear);
      trained().push_back(make_trained(
          name + ".lora_a", model::uniform_by_name({config_.rank, target.in_features}, bound, seed, name + ".lora_a"),
          device));
      delta->a = trained().back().value;
      trained().push_back(make_trained(name + ".lora_b", at::zeros({target.out_features, config_.rank}), device));
      delta->b = trained().back().value;
      deltas.emplace(target.role, std::move(delta));
    }
    layer->block()->visit_linears([&](const std::string& role, model::Linear& linear) {
      if (const auto delta = deltas.find(role); delta != deltas.end()) {
        linear.delta = delta->second;
      }
    });
  }
}

std::vector<std::pair<std::string, std::string>> LoraMethod::describe_export() const {
  return {{"rank", nlohmann::json(config_.rank).dump()},       {"alpha", nlohmann::json(config_.alpha).dump()},
          {"dropout", nlohmann::json(config_.dropout).dump()}, {"scale", nlohmann::json(lora_scale(config_)).dump()},
          {"biases", nlohmann::json(config_.biases).dump()},   {"targets", nlohmann::json(config_.targets).dump()}};
}

}  // namespace espalier::peft
