// SPDX-License-Identifier: Apache-2.0
#include "peft/linear_targets.h"

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <set>

#include "common/check.h"
#include "common/error.h"

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

}  // namespace espalier::peft
