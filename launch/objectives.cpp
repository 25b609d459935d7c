// SPDX-License-Identifier: Apache-2.0
#include "launch/objectives.h"

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "common/error.h"
#include "train/task.h"

namespace espalier::launch {
namespace {

constexpr std::string_view kObjective = "objective";
constexpr std::string_view kSweep = "sweep";

/// Values of one objective.
struct Named {
  std::string name;
  std::vector<ScopedValue> values;
};

std::vector<std::string> split_values(const std::string& text) {
  std::vector<std::string> values;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('|', begin), text.size());
    const auto first = text.find_first_not_of(" \t", begin);
    const auto last = text.find_last_not_of(" \t", end == 0 ? 0 : end - 1);
    const bool is_empty = first == std::string::npos || first >= end;
    values.push_back(is_empty ? std::string() : text.substr(first, last + 1 - first));
    begin = end + 1;
  }
  return values;
}

/// What the grid calls an option: the last word of its key, or the whole key where another option has the same.
std::string label_of(const std::string& key, const std::vector<ScopedValue>& axes) {
  const auto leaf = [](const std::string& whole) { return whole.substr(whole.rfind('.') + 1); };
  const auto same =
      std::count_if(axes.begin(), axes.end(), [&](const ScopedValue& axis) { return leaf(axis.key) == leaf(key); });
  return same > 1 ? key : leaf(key);
}

/// A name is a folder's and begins the names of tensors.
std::string as_name(std::string text) {
  constexpr std::string_view kAllowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+.";
  std::replace_if(
      text.begin(), text.end(), [&](char letter) { return kAllowed.find(letter) == kAllowed.npos; }, '_');
  return text;
}

std::vector<Named> combinations(const std::vector<ScopedValue>& axes) {
  std::vector<Named> grid = {{}};
  for (const ScopedValue& axis : axes) {
    std::vector<Named> finer;
    for (const Named& point : grid) {
      for (const std::string& text : split_values(axis.text)) {
        Named next = point;
        next.name = fmt::format("{}{}{}-{}", point.name, point.name.empty() ? "" : "_",
                                as_name(label_of(axis.key, axes)), as_name(text));
        next.values.push_back(axis);
        next.values.back().text = text;
        finer.push_back(std::move(next));
      }
    }
    grid = std::move(finer);
  }
  std::set<std::string> names;
  for (const Named& point : grid) {
    if (!names.insert(point.name).second) {
      throw ConfigError(fmt::format("[sweep]: expected different values for each option, found {} twice", point.name));
    }
  }
  return grid;
}

std::vector<Named> objectives_of(const std::vector<ScopedValue>& values) {
  std::vector<Named> named;
  for (const ScopedValue& value : values) {
    const std::string name = value.section.substr(kObjective.size() + 1);
    auto found = std::find_if(named.begin(), named.end(), [&](const Named& other) { return other.name == name; });
    if (found == named.end()) {
      found = named.insert(named.end(), {name, {}});
    }
    found->values.push_back(value);
  }
  return named;
}

}  // namespace

void describe_objectives(OptionTable& table) {
  const std::vector<std::string> keys = {"peft.", "optimizer.", "data.label_column"};
  table.add_scope({std::string(kObjective), /*is_named=*/true, keys,
                   "One of several side networks that train on one frozen forward, each with its own head, optimizer, "
                   "metrics, best weights and adapter: whole keys of options with the values that it has for itself."});
  table.add_scope({std::string(kSweep), /*is_named=*/false, keys,
                   "An objective for every combination of values, which stand between '|': "
                   "optimizer.learning_rate = 1e-3 | 3e-3."});
}

std::vector<ObjectiveOptions> plan_objectives(const OptionTable& table) {
  std::vector<ScopedValue> axes, own;
  for (const ScopedValue& value : table.scoped_values()) {
    (value.section == kSweep ? axes : own).push_back(value);
  }
  if (!axes.empty() && !own.empty()) {
    throw ConfigError(fmt::format("{}: expected either [sweep] or [objective.NAME] sections, found both; {} has one",
                                  axes.front().origin, own.front().origin));
  }
  const auto named = !axes.empty() ? combinations(axes) : !own.empty() ? objectives_of(own) : std::vector<Named>{{}};
  std::vector<ObjectiveOptions> objectives;
  for (const Named& each : named) {
    ObjectiveOptions options{.name = each.name, .run = {}, .adapter_options = {}};
    OptionTable whole;
    describe(whole, options.run);
    whole.take(table);
    for (const ScopedValue& value : each.values) {
      const Option* given = table.find(value.key);
      if (given != nullptr && given->source() == OptionSource::kFlag && value.source == OptionSource::kFile) {
        throw ConfigError(fmt::format(
            "--{}: expected an option that no objective has for itself, found one that {} sets; give --{}.{} in its "
            "place, or leave the flag out",
            value.key, value.origin, value.section, value.key));
      }
      whole.set(value.key, value.text, value.source, value.origin);
    }
    options.adapter_options = adapter_options(whole);
    objectives.push_back(std::move(options));
  }
  return objectives;
}

std::string names_of(const std::vector<ObjectiveOptions>& objectives) {
  std::vector<std::string> names;
  names.reserve(objectives.size());
  for (const auto& objective : objectives) {
    names.push_back(objective.name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

const ObjectiveOptions& find_objective(const std::vector<ObjectiveOptions>& objectives, const std::string& name) {
  const auto found = std::find_if(objectives.begin(), objectives.end(),
                                  [&](const ObjectiveOptions& objective) { return objective.name == name; });
  if (found == objectives.end()) {
    throw ConfigError(
        objectives.size() == 1 && objectives.front().name.empty()
            ? fmt::format("--objective: expected nothing, since the run has one objective, found {}", name)
            : fmt::format("--objective: expected one of the run's objectives ({}), found '{}'", names_of(objectives),
                          name));
  }
  return *found;
}

train::ObjectiveConfig make_objective(const ObjectiveOptions& options, const data::DatasetInfo& dataset) {
  auto info = data::with_label_column(dataset, options.run.data.label_column);
  const auto head = train::head_request(info, options.run.model.pooling);
  return {options.name, options.run.peft, head, std::move(info), options.run.optimizer};
}

}  // namespace espalier::launch
