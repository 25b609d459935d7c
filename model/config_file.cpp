// SPDX-License-Identifier: Apache-2.0
#include "model/config_file.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include <utility>

#include "common/durable_file.h"
#include "common/error.h"

namespace espalier::model {

ConfigFile::ConfigFile(std::filesystem::path file) : path_(std::move(file)) {
  if (!std::filesystem::is_regular_file(path_)) {
    throw ConfigError(
        fmt::format("{}: expected the config.json of a Hugging Face model folder; found no such file", path_.string()));
  }
  try {
    values_ = nlohmann::json::parse(read_file(path_));
  } catch (const nlohmann::json::parse_error& error) {
    throw ConfigError(fmt::format("{}: expected JSON; found an error at byte {}", path_.string(), error.byte));
  }
  if (!values_.is_object()) {
    throw ConfigError(fmt::format("{}: expected a JSON object; found {}", path_.string(), values_.type_name()));
  }
}

bool ConfigFile::has(const std::string& key) const {
  const auto found = values_.find(key);
  return found != values_.end() && !found->is_null();
}

std::int64_t ConfigFile::integer(const std::string& key, std::int64_t lowest) const {
  const auto expected = fmt::format("a whole number of at least {}", lowest);
  if (!has(key) || !values_[key].is_number_integer()) refuse(key, expected);
  const auto value = values_[key].get<std::int64_t>();
  if (value < lowest) refuse(key, expected);
  return value;
}

std::int64_t ConfigFile::integer_or(const std::string& key, std::int64_t lowest, std::int64_t fallback) const {
  return has(key) ? integer(key, lowest) : fallback;
}

double ConfigFile::number_or(const std::string& key, double fallback) const {
  if (!has(key)) return fallback;
  if (!values_[key].is_number()) refuse(key, "a number");
  return values_[key].get<double>();
}

double ConfigFile::positive(const std::string& key) const {
  if (!has(key)) refuse(key, "a number above 0");
  return positive_or(key, 1);
}

double ConfigFile::positive_or(const std::string& key, double fallback) const {
  const double value = number_or(key, fallback);
  if (!(value > 0)) refuse(key, "a number above 0");
  return value;
}

double ConfigFile::probability_or(const std::string& key, double fallback) const {
  const double value = number_or(key, fallback);
  if (!(value >= 0 && value < 1)) refuse(key, "a probability, at least 0 and below 1");
  return value;
}

std::string ConfigFile::text_or(const std::string& key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  if (!values_[key].is_string()) refuse(key, "a text");
  return values_[key].get<std::string>();
}

bool ConfigFile::flag_or(const std::string& key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!values_[key].is_boolean()) refuse(key, "true or false");
  return values_[key].get<bool>();
}

std::vector<std::string> ConfigFile::texts(const std::string& key) const {
  if (!has(key)) return {};
  const auto& list = values_[key];
  const bool is_valid =
      list.is_array() && std::all_of(list.begin(), list.end(), [](const auto& e) { return e.is_string(); });
  if (!is_valid) refuse(key, "a list of texts");
  return list.get<std::vector<std::string>>();
}

std::vector<double> ConfigFile::numbers(const std::string& key) const {
  if (!has(key)) return {};
  const auto& list = values_[key];
  const bool is_valid =
      list.is_array() && std::all_of(list.begin(), list.end(), [](const auto& e) { return e.is_number(); });
  if (!is_valid) refuse(key, "a list of numbers");
  return list.get<std::vector<double>>();
}

std::vector<std::int64_t> ConfigFile::integers(const std::string& key, std::int64_t lowest) const {
  if (!has(key)) return {};
  const auto list = values_[key].is_array() ? values_[key] : nlohmann::json::array({values_[key]});
  std::vector<std::int64_t> integers;
  for (const auto& value : list) {
    if (!value.is_number_integer() || value.get<std::int64_t>() < lowest) {
      refuse(key, fmt::format("a whole number of at least {}, or a list of such", lowest));
    }
    integers.push_back(value.get<std::int64_t>());
  }
  return integers;
}

ConfigFile ConfigFile::object(const std::string& key) const {
  if (!has(key)) return {path_, parent_ + key + ".", nlohmann::json::object()};
  if (!values_[key].is_object()) refuse(key, "an object");
  return {path_, parent_ + key + ".", values_[key]};
}

std::int64_t ConfigFile::num_members(const std::string& key) const {
  if (!has(key)) return 0;
  if (!values_[key].is_object()) refuse(key, "an object");
  return static_cast<std::int64_t>(values_[key].size());
}

void ConfigFile::refuse(const std::string& key, const std::string& expected) const {
  const auto found = values_.find(key);
  // A text that is not UTF-8 must not turn the report of an error into another error.
  const auto text = found == values_.end()
                        ? std::string("no such key")
                        : found->dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  throw ConfigError(fmt::format("{}: {}{}: expected {}; found {}", path_.string(), parent_, key, expected, text));
}

}  // namespace espalier::model
