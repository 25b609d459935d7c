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

BiasChoice biases_of(const LoraConfig& config) {
  return {config.biases, config.targets};
}

/// The one that is not 0 is drawn, so that the product starts at 0.
std::pair<at::Tensor, at::Tensor> draw_factors(const LoraConfig& config, const LinearTarget& target,
                                               const std::string& name, std::uint64_t seed) {
  at::Tensor a = at::zeros({config.rank, target.in_features}), b = at::zeros({target.out_features, config.rank});
  if (config.initial == "zero_a") {
    b = model::normal_by_name(b.sizes(), /*deviation=*/1, seed, name + ".lora_b");
  } else {
    // Kaiming-uniform with a = sqrt(5), as the reference implementations start: variance 1 / (3 in).
    const double bound = 1.0 / std::sqrt(static_cast<double>(target.in_features));
    a = model::uniform_by_name(a.sizes(), bound, seed, name + ".lora_a");
  }
  return {a, b};
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
  describe_biases(table, "lora", config.biases);
  table.add("peft.lora.initial", config.initial)
      .choices({"kaiming", "zero_a"})
      .help(
          "kaiming: A is drawn, B is 0. zero_a: A is 0, B of N(0, 1), as the baseline in ROSA's paper, which has no "
          "scale either (alpha = rank).");
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
  return count + count_biases(biases_of(config), backbone);
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
    : ChainMethod(slice,
                  {.first_trained_layer = first_trained_by_targets("lora", biases_of(config), slice.backbone())}),
      config_(config) {
  check_targets(kTargetsKey, config_.targets, slice.backbone());
  const at::Device device = slice.options().device;
  for (const auto& layer : slice.layers()) {
    train_biases(biases_of(config_), slice, *layer, weights, trained());
    if (layer->block() == nullptr) {
      train_task_weights(slice, *layer, weights, trained());
      continue;
    }
    std::map<std::string, std::shared_ptr<const LoraDelta>> deltas;
    for (const LinearTarget& target : plan_lora(config_, layer->plan())) {
      const std::string name = layer->plan().name + "." + target.role;
      auto delta = std::make_shared<LoraDelta>();
      delta->scale = lora_scale(config_);
      delta->dropout = config_.dropout;
      delta->place = {RandomDomain::kAdapter, layer->plan().index};
      delta->site =
          static_cast<model::DropoutSite>(static_cast<std::uint64_t>(model::DropoutSite::kFactor) + target.linear);
      const auto [a, b] = draw_factors(config_, target, name, seed);
      trained().push_back(make_trained(name + ".lora_a", a, device));
      delta->a = trained().back().value;
      trained().push_back(make_trained(name + ".lora_b", b, device));
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

nlohmann::json LoraMethod::describe_export() const {
  return {{"rank", config_.rank},         {"alpha", config_.alpha},   {"dropout", config_.dropout},
          {"scale", lora_scale(config_)}, {"biases", config_.biases}, {"targets", config_.targets}};
}

}  // namespace espalier::peft
