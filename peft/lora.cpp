// SPDX-License-Identifier: Apache-2.0
#include "peft/lora.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/error.h"
#include "model/dropout.h"
#include "model/initial.h"
#include "peft/trained_set.h"

namespace espalier::peft {
namespace {

constexpr const char* kTargetsKey = "peft.lora.targets";

}  // namespace

void describe(OptionTable& table, LoraConfig& config) {
  table.add("peft.lora.rank", config.rank).at_least(1).help("Rank of the factors. Trained scalars grow with it.");
  table.add("peft.lora.alpha", config.alpha).above(0).help("The product of the factors is scaled by alpha / rank.");
  table.add("peft.lora.dropout", config.dropout).at_least(0).below(1).help("Dropout on what the factors read.");
  table.add(kTargetsKey, config.targets)
      .help(
          "Roles of the linears that get factors, in every block: attention.query, attention.key, attention.value, "
          "attention.output, "
          "feed_forward.up, feed_forward.down.");
}

std::vector<LinearTarget> plan_lora(const LoraConfig& config, const model::BlockSpec& spec) {
  std::vector<LinearTarget> targets = plan_targets(config.targets, spec);
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

std::int64_t count_lora(const LoraConfig& config, const model::Backbone& backbone) {
  check_targets(kTargetsKey, config.targets, backbone);
  std::int64_t count = 0;
  for (const model::LayerPlan& layer : backbone.chain) {
    if (layer.kind == model::LayerKind::kBlock) {
      for (const LinearTarget& target : plan_lora(config, *layer.block)) {
        count += config.rank * (target.in_features + target.out_features);
      }
    }
  }
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
    : ChainMethod(slice, {.first_trained_layer = first_trained_by_blocks(slice.backbone())}), config_(config) {
  check_targets(kTargetsKey, config_.targets, slice.backbone());
  const at::Device device = slice.options().device;
  for (const auto& layer : slice.layers()) {
    if (layer->block() == nullptr) {
      train_task_weights(slice, *layer, weights, trained());
      continue;
    }
    std::map<std::string, std::shared_ptr<const LoraDelta>> deltas;
    for (const LinearTarget& target : plan_lora(config_, layer->block()->spec())) {
      const std::string name = layer->plan().name + "." + target.role;
      // Kaiming-uniform with a = sqrt(5), as the reference implementations start: variance 1 / (3 in).
      const double bound = 1.0 / std::sqrt(static_cast<double>(target.in_features));
      auto delta = std::make_shared<LoraDelta>();
      delta->scale = config_.alpha / static_cast<double>(config_.rank);
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
  return {{"rank", nlohmann::json(config_.rank).dump()},
          {"alpha", nlohmann::json(config_.alpha).dump()},
          {"dropout", nlohmann::json(config_.dropout).dump()},
          {"targets", nlohmann::json(config_.targets).dump()}};
}

}  // namespace espalier::peft
