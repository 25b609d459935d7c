// SPDX-License-Identifier: Apache-2.0
// A good model, dataset and command line that one case after the other spoils: the program's exit code is right, and
// its message names the file, key or tensor, what was expected and what was found.
#pragma once

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "common/hdf5_file.h"

namespace espalier::test {

inline constexpr int kConfigCode = 2;
inline constexpr int kStorageCode = 5;

/// The command line trains two steps, until a case replaces it.
struct Setting {
  explicit Setting(const std::filesystem::path& folder);
  void add(const std::string& flag) { arguments.push_back(flag); }
  void replace(const std::string& key, const std::string& value);
  void remove(const std::string& key);
  void edit_config(const std::string& from, const std::string& to) const;
  /// Trains the good setting, so that a run folder is there to spoil.
  void train() const;
  /// `command` with the run, and `flags`.
  void on_run(const std::string& command, const std::vector<std::string>& flags = {});
  /// Takes the run's export, with `flags`, for the command line.
  void exports(const std::vector<std::string>& flags);
  /// Predicts the arrays that `fill` writes, with the bare backbone and `flags`.
  void predicts(const std::function<void(Hdf5File& file)>& fill, const std::vector<std::string>& flags = {});
  [[nodiscard]] std::string write(const std::string& name, const std::string& text) const;
  [[nodiscard]] std::string ini(const std::string& text) const { return "--config=" + write("bad.ini", text); }

  std::filesystem::path root, model, dataset;
  std::vector<std::string> arguments;
};

struct Case {
  const char* name;
  std::function<void(Setting&)> spoil;
  int exit_code;
  std::vector<std::string> said;
  friend std::ostream& operator<<(std::ostream& stream, const Case& self) { return stream << self.name; }
};

/// Rewrites the weights after `change`.
void change_weights(const Setting& setting, const std::function<void(std::map<std::string, at::Tensor>&)>& change);
/// Overwrites `bytes` at `offset`.
void damage_file(const std::filesystem::path& path, std::streamoff offset, const std::string& bytes);

/// IsRefusedByName, for the tables of cases that the test files instantiate.
class BadInput : public testing::TestWithParam<Case> {};

inline std::string name_of(const testing::TestParamInfo<Case>& one) {
  return one.param.name;
}

}  // namespace espalier::test
