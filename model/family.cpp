// SPDX-License-Identifier: Apache-2.0
#include "model/family.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <string_view>

#include "common/check.h"
#include "model/backbone.h"

namespace espalier::model {

namespace {

std::string with_number(std::string text, std::int64_t number) {
  const auto place = text.find("{}");
  return place == std::string::npos ? text : text.replace(place, 2, std::to_string(number));
}

/// "encoder.3" -> "encoder"
std::string_view place_of(const LayerPlan& layer) {
  const std::string_view name = layer.name;
  return name.substr(0, name.find('.'));
}

}  // namespace

StoredWeight Family::stored_weight(const LayerPlan& layer, const std::string& role) const {
  const auto place = names_.places.find(place_of(layer));
  ESPALIER_CHECK(place != names_.places.end(), "{} has no names for {}", names_.model_type, layer.name);
  const auto dot = role.rfind('.');
  const auto kind = role.substr(dot + 1);  // weight or bias
  auto found = place->second.find(role);
  if (found == place->second.end()) found = place->second.find(role.substr(0, dot));
  ESPALIER_CHECK(found != place->second.end(), "{} has no stored name for {}", layer.name, role);
  const StoredName& entry = found->second;

  StoredWeight stored;
  stored.is_transposed = entry.is_transposed && kind == "weight";
  stored.part = entry.part;
  stored.num_parts = entry.num_parts;
  stored.is_buffer = entry.is_buffer;
  stored.is_task = is_task_weight(layer, role);
  stored.is_tied_head = layer.head && !entry.tied_names.empty();
  const bool is_norm = role.substr(0, dot).ends_with("norm");
  const auto spell_out = [&](const std::vector<std::string>& names, std::vector<std::string>& spelled) {
    for (const auto& name : names) {
      std::vector<std::string> ends = {entry.is_whole ? "" : "." + kind};
      if (is_norm && names_.has_old_norm_names) ends.push_back(kind == "weight" ? ".gamma" : ".beta");
      for (const auto& end : ends) {
        const auto complete = with_number(name, layer.number) + end;
        if (complete.starts_with('/')) {
          spelled.push_back(complete.substr(1));
        } else {
          for (const auto& prefix : names_.prefixes) spelled.push_back(prefix + complete);
        }
      }
    }
  };
  spell_out(entry.names, stored.names);
  spell_out(entry.tied_names, stored.tied_names);
  return stored;
}

bool Family::is_known_extra(const std::string& stored_name) const {
  return std::any_of(names_.prefixes.begin(), names_.prefixes.end(), [&](const std::string& prefix) {
    if (!stored_name.starts_with(prefix)) return false;
    const auto name = std::string_view(stored_name).substr(prefix.size());
    return std::any_of(names_.extras.begin(), names_.extras.end(),
                       [&](const std::string& beginning) { return name.starts_with(beginning); }) ||
           std::any_of(names_.extra_ends.begin(), names_.extra_ends.end(),
                       [&](const std::string& end) { return name.ends_with(end); });
  });
}

}  // namespace espalier::model
