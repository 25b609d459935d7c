// SPDX-License-Identifier: Apache-2.0
#include "peft/linear_targets.h"

#include <c10/util/accumulate.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <set>

#include "common/check.h"
#include "common/error.h"
#include "peft/bitfit.h"
#include "peft/trained_set.h"

namespace espalier::peft {
void check_targets(const std::string& key, const std::vector<std::string>& targets, const model::Backbone& backbone) {
  const std::set<std::string> wanted(targets.begin(), targets.end());
  if (wanted.empty() || wanted.size() != targets.size()) {
    throw ConfigError(
        fmt::format("{}: expected at least one role, each once, found '{}'", key, fmt::join(targets, ",")));
  }
  std::vector<std::string> roles;
  std::set<std::string> linears;
  for (const model::LayerPlan& layer : backbone.chain) {
    if (layer.kind == model::LayerKind::kBlock) {
      model::TransformerBlock(*layer.block, {}).visit_linears([&](const std::string& role, const model::Linear&) {
        if (std::find(roles.begin(), roles.end(), role) == roles.end()) {
          roles.push_back(role);
        }
        linears.insert(layer.name + "." + role);
      });
    }
  }
  for (const std::string& target : targets) {
    const bool is_role = std::find(roles.begin(), roles.end(), target) != roles.end();
    if (!is_role && !linears.contains(target)) {
      throw ConfigError(fmt::format("{}: expected roles among {}, or one block's as in {}, found '{}'", key,
                                    fmt::join(roles, ", "), *linears.begin(), target));
    }
  }
}

std::vector<LinearTarget> plan_targets(const std::vector<std::string>& targets, const model::BlockSpec& spec,
                                       const std::string& layer_name) {
  const auto is_wanted = [&](const std::string& role) {
    return std::any_of(targets.begin(), targets.end(),
                       [&](const std::string& target) { return target == role || target == layer_name + "." + role; });
  };
  std::vector<LinearTarget> planned;
  std::uint64_t number = 0;
  model::TransformerBlock(spec, {}).visit_linears([&](const std::string& role, const model::Linear& linear) {
    if (is_wanted(role)) {
      planned.push_back({role, number, linear.in_features, linear.out_features});
    }
    ++number;
  });
  return planned;
}

int first_trained_by_blocks(const model::Backbone& backbone) {
  if (backbone.visual() != nullptr) {
    return 0;
  }
  const auto block = std::find_if(backbone.chain.begin(), backbone.chain.end(),
                                  [](const model::LayerPlan& layer) { return layer.kind == model::LayerKind::kBlock; });
  ESPALIER_CHECK(block != backbone.chain.end());
  return static_cast<int>(block->index);
}

std::vector<std::string> targets_within(const std::string& key, const std::vector<std::string>& targets,
                                        const model::Backbone& backbone, const std::function<bool(int)>& is_wanted) {
  check_targets(key, targets, backbone);
  std::vector<std::string> found;
  for (const std::string& target : targets) {
    const std::size_t before = found.size();
    for (const model::LayerPlan& layer : backbone.chain) {
      if (!layer.block || !is_wanted(static_cast<int>(layer.index))) continue;
      for (const LinearTarget& planned : plan_targets({target}, *layer.block, layer.name)) {
        found.push_back(layer.name + "." + planned.role);
      }
    }
    if (found.size() == before) {
      throw ConfigError(fmt::format(
          "{}: expected linears of blocks that take part, found '{}', which stands in frozen ones alone; take it out",
          key, target));
    }
  }
  return found;
}

void describe_biases(OptionTable& table, const std::string& method, std::string& biases) {
  table.add(fmt::format("peft.{}.biases", method), biases)
      .choices({"none", "targets", "all"})
      .help("Biases that train too. targets: those of the linears with factors. all: every bias of the backbone.");
}

bool is_chosen_bias(const BiasChoice& choice, const model::Backbone& backbone, const model::LayerPlan& layer,
                    const std::string& role, const std::vector<std::int64_t>& shape) {
  if (choice.biases == "none" || !is_backbone_bias(backbone, layer, role, shape)) return false;
  if (choice.biases == "all") return true;
  const auto targets =
      layer.block ? plan_targets(choice.targets, *layer.block, layer.name) : std::vector<LinearTarget>();
  return std::any_of(targets.begin(), targets.end(),
                     [&](const LinearTarget& target) { return role == target.role + ".bias"; });
}

std::int64_t count_biases(const BiasChoice& choice, const model::Backbone& backbone) {
  std::int64_t count = 0;
  model::visit_planned_weights(
      backbone, [&](const model::LayerPlan& layer, const std::string& role, const std::vector<std::int64_t>& shape) {
        count += is_chosen_bias(choice, backbone, layer, role, shape) ? c10::multiply_integers(shape) : 0;
      });
  return count;
}

void train_biases(const BiasChoice& choice, model::StageSlice& slice, model::Layer& layer,
                  const model::WeightSource& weights, std::vector<TrainedTensor>& trained) {
  const auto is_wanted = [&](const std::string& role, const std::vector<std::int64_t>& shape) {
    return is_chosen_bias(choice, slice.backbone(), layer.plan(), role, shape);
  };
  train_chosen(slice, layer, weights, is_wanted, trained);
}

int first_trained_by_targets(const std::string& method, const BiasChoice& choice, const model::Backbone& backbone) {
  if (choice.biases == "all") {
    return first_trained_by_biases(fmt::format("peft.{}.biases=all", method), backbone);
  }
  check_targets(fmt::format("peft.{}.targets", method), choice.targets, backbone);
  if (backbone.visual() != nullptr) return 0;
  const auto first = std::find_if(backbone.chain.begin(), backbone.chain.end(), [&](const model::LayerPlan& layer) {
    return layer.block && !plan_targets(choice.targets, *layer.block, layer.name).empty();
  });
  ESPALIER_CHECK(first != backbone.chain.end());
  return static_cast<int>(first->index);
}

}  // namespace espalier::peft
