// SPDX-License-Identifier: Apache-2.0
// Reads the config.json of a Hugging Face folder, so that every wrong value is refused by file and key.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace espalier::model {

/// A key that is absent or null counts as not given. Every reader throws ConfigError naming file, key, expected and
/// found.
class ConfigFile {
 public:
  /// Throws: ConfigError when the file is missing or is not a JSON object.
  explicit ConfigFile(std::filesystem::path file);

  [[nodiscard]] bool has(const std::string& key) const;
  /// A required whole number, not below `lowest`.
  [[nodiscard]] std::int64_t integer(const std::string& key, std::int64_t lowest) const;
  [[nodiscard]] std::int64_t integer_or(const std::string& key, std::int64_t lowest, std::int64_t fallback) const;
  /// A required number above 0.
  [[nodiscard]] double positive(const std::string& key) const;
  /// A number above 0.
  [[nodiscard]] double positive_or(const std::string& key, double fallback) const;
  /// A number in [0, 1).
  [[nodiscard]] double probability_or(const std::string& key, double fallback) const;
  [[nodiscard]] std::string text_or(const std::string& key, const std::string& fallback) const;
  [[nodiscard]] bool flag_or(const std::string& key, bool fallback) const;
  /// A list of texts; empty when not given.
  [[nodiscard]] std::vector<std::string> texts(const std::string& key) const;
  /// A list of numbers; empty when not given.
  [[nodiscard]] std::vector<double> numbers(const std::string& key) const;
  /// A whole number or a list of them, none below `lowest`; empty when not given.
  [[nodiscard]] std::vector<std::int64_t> integers(const std::string& key, std::int64_t lowest) const;
  /// The object at `key` to be read like the file; its errors name "key.member". Empty when not given.
  [[nodiscard]] ConfigFile object(const std::string& key) const;
  /// Members of an object; 0 when not given.
  [[nodiscard]] std::int64_t num_members(const std::string& key) const;

  /// Throws: ConfigError "FILE: KEY: expected EXPECTED; found (the value)".
  [[noreturn]] void refuse(const std::string& key, const std::string& expected) const;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  ConfigFile(std::filesystem::path path, std::string parent, nlohmann::json values)
      : path_(std::move(path)), parent_(std::move(parent)), values_(std::move(values)) {}
  [[nodiscard]] double number_or(const std::string& key, double fallback) const;

  std::filesystem::path path_;
  std::string parent_;  // "rope_scaling." of such a member
  nlohmann::json values_;
};

}  // namespace espalier::model
