// SPDX-License-Identifier: Apache-2.0
#include "launch/peft_config.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <regex>
#include <string_view>

#include "common/durable_file.h"
#include "common/error.h"

namespace fs = std::filesystem;

namespace espalier::launch {
namespace {

using Json = nlohmann::ordered_json;

/// Keys that change nothing here: what they decided is in the tensors, or concerns PEFT's own bookkeeping.
constexpr std::string_view kWithoutEffect[] = {
    "auto_mapping",   "peft_version",        "base_model_name_or_path", "revision",          "inference_mode",
    "target_modules", "exclude_modules",     "fan_in_fan_out",          "modules_to_save",   "rank_pattern",
    "layers_pattern", "layers_to_transform", "megatron_core",           "qalora_group_size", "runtime_config",
    "eva_config",     "ensure_weight_tying"};
constexpr std::string_view kUsed[] = {"peft_type",  "task_type",     "r",
                                      "lora_alpha", "lora_dropout",  "bias",
                                      "use_rslora", "alpha_pattern", "init_lora_weights"};

bool contains(const auto& keys, std::string_view key) {
  return std::find(std::begin(keys), std::end(keys), key) != std::end(keys);
}

/// Kind of the head for what PEFT calls the task; empty: none is here.
std::string head_kind_of(const std::string& task_type) {
  return task_type == "SEQ_CLS"                                    ? "pooled"
         : task_type == "CAUSAL_LM" || task_type == "SEQ_2_SEQ_LM" ? "language_model"
                                                                   : "";
}

bool is_off(const Json& value) {
  return value.is_null() || value == false || ((value.is_object() || value.is_array()) && value.empty());
}

}  // namespace

Json read_peft_config(const fs::path& folder) {
  const fs::path file = folder / kPeftConfigName;
  Json config;
  try {
    config = Json::parse(read_file(file));
  } catch (const nlohmann::json::exception& error) {
    throw ConfigError(fmt::format("{}: expected JSON as PEFT writes it: {}", file.string(), error.what()));
  }
  if (!config.is_object()) {
    throw ConfigError(
        fmt::format("{}: expected a JSON object as PEFT writes it, found {}", file.string(), config.type_name()));
  }
  return config;
}

PeftConfig::PeftConfig(const fs::path& folder) : folder_(folder), config_(read_peft_config(folder)) {
  const auto refuse = [&](const std::string& key, const std::string& expected) {
    throw ConfigError(fmt::format("{}: {}: expected {}, found {}", (folder / kPeftConfigName).string(), key, expected,
                                  config_.contains(key) ? config_[key].dump() : "nothing"));
  };
  if (config_.value("peft_type", Json()) != "LORA") {
    refuse("peft_type", "\"LORA\", the only method of PEFT that is read");
  }
  const Json task = config_.value("task_type", Json());
  if (!task.is_null() && head_kind_of(task.get<std::string>()).empty()) {
    refuse("task_type", "null, \"SEQ_CLS\", \"CAUSAL_LM\" or \"SEQ_2_SEQ_LM\", the tasks that there is a head for");
  }
  if (!config_.contains("r") || !config_["r"].is_number_integer() || config_["r"] < 1) {
    refuse("r", "a positive integer");
  }
  for (const auto& [key, value] : config_.items()) {
    if (!contains(kWithoutEffect, key) && !contains(kUsed, key) && !is_off(value)) {
      refuse(key, "null, since LoRA with it is not supported");
    }
  }
  const Json start = config_.value("init_lora_weights", Json(true));
  if (!start.is_boolean() && start != "gaussian" && start != "eva" && start != "orthogonal") {
    refuse("init_lora_weights",
           "true, false, gaussian, eva or orthogonal (others change the weights of the backbone; let PEFT convert the "
           "folder with path_initial_model_for_weight_conversion)");
  }
}

std::string PeftConfig::head_kind() const {
  const Json task = config_.value("task_type", Json());
  return task.is_null() ? "" : head_kind_of(task.get<std::string>());
}

double PeftConfig::scale(const std::string& module, std::int64_t rank) const {
  double alpha = config_.value("lora_alpha", 8.0);
  const Json patterns = config_.value("alpha_pattern", Json::object());
  for (const auto& [pattern, value] : patterns.items()) {
    try {
      if (std::regex_match(module, std::regex("(.*\\.)?(" + pattern + ")"))) {
        alpha = value.get<double>();
        break;
      }
    } catch (const std::regex_error& error) {
      throw ConfigError(fmt::format("{}: alpha_pattern: expected regular expressions, found '{}': {}",
                                    (folder_ / kPeftConfigName).string(), pattern, error.what()));
    }
  }
  const auto size = static_cast<double>(rank);
  return alpha / (is_rank_stabilized() ? std::sqrt(size) : size);
}

bool PeftConfig::is_rank_stabilized() const {
  return config_.value("use_rslora", false);
}

double PeftConfig::dropout() const {
  return config_.value("lora_dropout", 0.0);
}

std::string PeftConfig::biases() const {
  const std::string biases = config_.value("bias", std::string("none"));
  return biases == "lora_only" ? "targets" : biases;
}

}  // namespace espalier::launch
