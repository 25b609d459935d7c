// SPDX-License-Identifier: Apache-2.0
// adapter_config.json of Hugging Face PEFT: how the factors of a LoRA are scaled and what else they mean.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace espalier::launch {

inline constexpr const char* kPeftConfigName = "adapter_config.json";

/// The file as it stands; of several patterns PEFT takes the first that matches, so their order stays.
/// Throws: ConfigError unless it is a JSON object.
nlohmann::ordered_json read_peft_config(const std::filesystem::path& folder);

/// That of a LoRA that Espalier can read.
class PeftConfig {
 public:
  /// Throws: ConfigError naming a key that is not supported.
  explicit PeftConfig(const std::filesystem::path& folder);

  /// What the task that is named reads of the model, as HeadRequest has it; empty: none is named.
  [[nodiscard]] std::string head_kind() const;
  /// What multiplies B A of a module of `rank`.
  [[nodiscard]] double scale(const std::string& module, std::int64_t rank) const;
  [[nodiscard]] bool is_rank_stabilized() const;
  [[nodiscard]] double dropout() const;
  /// As "peft.lora.biases".
  [[nodiscard]] std::string biases() const;

 private:
  std::filesystem::path folder_;
  nlohmann::ordered_json config_;
};

}  // namespace espalier::launch
