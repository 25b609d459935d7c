// SPDX-License-Identifier: Apache-2.0
#include "launch/run_config.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <sstream>
#include <string_view>

#include "common/durable_file.h"
#include "common/error.h"
#include "launch/objectives.h"

namespace espalier::launch {
namespace {

/// Options that decide where things lie, how the work is laid out or when it is saved, but no number.
constexpr std::string_view kWithoutEffectOnNumbers[] = {"run.",
                                                        "parallel.",
                                                        "checkpoint.",
                                                        "gradient_sync.strategy",
                                                        "gradient_sync.bucket_bytes",
                                                        "train.stop_at_step",
                                                        "train.initial_adapter",
                                                        "model.path",
                                                        "data.path"};

constexpr std::string_view kOfAdapters[] = {"peft.", "model.pooling", "data.label_column"};

template <typename Prefixes>
bool has_prefix(std::string_view key, const Prefixes& prefixes) {
  return std::any_of(std::begin(prefixes), std::end(prefixes),
                     [&](std::string_view prefix) { return key.starts_with(prefix); });
}

/// The [sections] and keys of canonical INI text for which `wanted(section.key)` holds.
std::string filter_ini(const std::string& text, const std::function<bool(std::string_view)>& wanted) {
  std::istringstream lines(text);
  std::string section;
  std::string kept;
  bool has_header = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("[")) {
      section = line.substr(1, line.find(']') - 1);
      has_header = false;
    } else if (const auto equals = line.find('='); equals != std::string::npos) {
      const auto key = line.substr(0, line.find_last_not_of(' ', equals - 1) + 1);
      if (wanted(section.empty() ? key : fmt::format("{}.{}", section, key))) {
        kept += has_header || section.empty() ? "" : fmt::format("[{}]\n", section);
        has_header = true;
        kept += line + "\n";
      }
    }
  }
  return kept;
}

}  // namespace

void describe(OptionTable& table, RunConfig& config) {
  train::describe(table, config.run);
  train::describe(table, config.model);
  data::describe(table, config.data);
  peft::describe(table, config.peft);
  optim::describe(table, config.optimizer);
  train::describe(table, config.train);
  train::describe(table, config.parallel);
  dist::describe(table, config.gradient_sync);
  train::describe(table, config.checkpoint);
  describe_objectives(table);
}

void describe_inference(OptionTable& table, RunConfig& config) {
  train::describe(table, config.model);
  data::describe(table, config.data);
  peft::describe(table, config.peft);
  train::describe_evaluation(table, config.train);
  train::describe(table, config.parallel);
}

std::string default_numeric_options() {
  RunConfig run;
  OptionTable table;
  describe(table, run);
  return numeric_options(table);
}

std::string numeric_options(const OptionTable& table) {
  return filter_ini(table.canonical_text(),
                    [](std::string_view key) { return !has_prefix(key, kWithoutEffectOnNumbers); });
}

std::string adapter_options(const OptionTable& table) {
  return filter_ini(table.canonical_text(), [](std::string_view key) { return has_prefix(key, kOfAdapters); });
}

std::string read_named_file(const std::string& path) {
  try {
    return read_file(path);
  } catch (const IoError& failure) {
    throw ConfigError(failure.what());
  }
}

void read_arguments(OptionTable& files, OptionTable& flags, const std::vector<std::string>& arguments,
                    const TextReader& read_text) {
  std::vector<std::string> words;
  std::string config_file;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    constexpr std::string_view kFlag = "--config";
    std::string value;
    if (arguments[i] == kFlag && i + 1 < arguments.size()) {
      value = arguments[++i];
    } else if (arguments[i].starts_with(std::string(kFlag) + "=")) {
      value = arguments[i].substr(kFlag.size() + 1);
    } else if (arguments[i] == kFlag) {
      throw ConfigError("--config: expected the path of an INI file after it, found nothing");
    } else {
      words.push_back(arguments[i]);
      continue;
    }
    if (!config_file.empty()) {
      throw ConfigError("--config: expected once, found twice");
    }
    config_file = value;
    files.read_text(read_text(value), value);
  }
  flags.read_flags(words);
}

}  // namespace espalier::launch
