// SPDX-License-Identifier: Apache-2.0
// Scopes of the option table: values that hold for a part of a run alone.
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "common/error.h"
#include "common/options.h"

namespace espalier {

void OptionTable::add_scope(OptionScope scope) {
  scopes_.push_back(std::move(scope));
}

void OptionTable::set(const std::string& key, const std::string& text, OptionSource source, const std::string& origin) {
  lookup(key, origin).assign(text, source, origin);
}

void OptionTable::take(const OptionTable& other) {
  for (const auto& option : options_) {
    if (const Option* given = other.find(option->key());
        given != nullptr && given->source() != OptionSource::kDefault) {
      option->assign(given->value_text(), given->source(), given->origin());
    }
  }
}

const OptionScope* OptionTable::scope_of(std::string_view key) const {
  const auto found = std::find_if(scopes_.begin(), scopes_.end(), [&](const OptionScope& scope) {
    return key.starts_with(scope.name) && key.substr(scope.name.size()).starts_with('.');
  });
  return found == scopes_.end() ? nullptr : &*found;
}

ScopedValue OptionTable::parse_scoped(const OptionScope& scope, const std::string& key, const std::string& origin) {
  ScopedValue value{.section = scope.name, .key = key.substr(scope.name.size() + 1), .text = {}, .origin = origin};
  if (scope.is_named) {
    const std::size_t end = value.key.find('.');
    const std::string name = value.key.substr(0, end);
    const bool is_name = !name.empty() && end != std::string::npos &&
                         name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+") ==
                             std::string::npos;
    if (!is_name) {
      throw ConfigError(
          fmt::format("{}: expected a section [{}.NAME] with a name of letters, digits, '_', '-' and '+', found \"{}\"",
                      origin, scope.name, key));
    }
    value.section += "." + name;
    value.key = value.key.substr(end + 1);
  }
  const bool is_allowed = std::any_of(scope.key_prefixes.begin(), scope.key_prefixes.end(),
                                      [&](const std::string& prefix) { return value.key.starts_with(prefix); });
  if (!is_allowed) {
    throw ConfigError(fmt::format("{}: expected in [{}] the whole key of an option that begins with {}, found \"{}\"",
                                  origin, value.section, fmt::join(scope.key_prefixes, " or "), value.key));
  }
  return value;
}

void OptionTable::keep(ScopedValue value) {
  const auto found = std::find_if(scoped_values_.begin(), scoped_values_.end(), [&](const ScopedValue& other) {
    return other.section == value.section && other.key == value.key;
  });
  if (found != scoped_values_.end()) {
    *found = std::move(value);
  } else {
    scoped_values_.push_back(std::move(value));
  }
}

}  // namespace espalier
