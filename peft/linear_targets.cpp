// SPDX-License-Identifier: Apache-2.0
#include "peft/linear_targets.h"

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <set>

#include "common/check.h"
#include "common/error.h"

namespace espalier::peft {

void check_targets(const std::string& key, const std::vector<std::string>& roles, const model::Backbone& backbone) {
  const std::set<std::string> wanted(roles.begin(), roles.end());
  if (wanted.empty() || wanted.size() != roles.size()) {
    throw ConfigError(fmt::format("{}: expected at least one role, each once, found '{}'", key, fmt::join(roles, ",")));
  }
  std::vector<std::string> known;
  for (const model::LayerPlan& layer : backbone.chain) {
    if (layer.kind == model::LayerKind::kBlock) {
      model::TransformerBlock(*layer.block, {}).visit_linears([&](const std::string& role, const model::Linear&) {
        if (std::find(known.begin(), known.end(), role) == known.end()) {
          known.push_back(role);
        }
      });
    }
  }
  for (const std::string& role : roles) {
    if (std::find(known.begin(), known.end(), role) == known.end()) {
      throw ConfigError(fmt::format("{}: expected roles among {}, found '{}'", key, fmt::join(known, ", "), role));
    }
  }
}

std::vector<LinearTarget> plan_targets(const std::vector<std::string>& roles, const model::BlockSpec& spec) {
  std::vector<LinearTarget> targets;
  std::uint64_t number = 0;
  model::TransformerBlock(spec, {}).visit_linears([&](const std::string& role, const model::Linear& linear) {
    if (std::find(roles.begin(), roles.end(), role) != roles.end()) {
      targets.push_back({role, number, linear.in_features, linear.out_features});
    }
    ++number;
  });
  return targets;
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
