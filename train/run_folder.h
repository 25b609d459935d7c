// SPDX-License-Identifier: Apache-2.0
// The folder of a run: config.ini, metrics.jsonl, summary.json, checkpoints/, adapter/ (with a folder for each of
// several objectives), .lock. Only rank 0 writes the text files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace espalier::train {

/// Keeps other processes from training in a folder as long as it lives: its file says on which host and as which
/// process. The system lets go of it with the process, however that ends.
class RunLock {
 public:
  /// Where the file system knows no locks there is only a warning. Throws: ConfigError when another holds it; IoError.
  explicit RunLock(const std::filesystem::path& file);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int descriptor_;
};

class RunFolder {
 public:
  /// Local; makes nothing yet.
  explicit RunFolder(std::filesystem::path path) : path_(std::move(path)) {}
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::filesystem::path config_file() const { return path_ / "config.ini"; }
  [[nodiscard]] std::filesystem::path metrics_file() const { return path_ / "metrics.jsonl"; }
  [[nodiscard]] std::filesystem::path summary_file() const { return path_ / "summary.json"; }
  [[nodiscard]] std::filesystem::path lock_file() const { return path_ / ".lock"; }
  [[nodiscard]] std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }
  /// Of an objective with a name, a folder of its own below.
  [[nodiscard]] std::filesystem::path adapter(const std::string& objective = "") const {
    return objective.empty() ? path_ / "adapter" : path_ / "adapter" / objective;
  }

  /// Throws: IoError.
  void create() const;
  /// Appends one line. Throws: IoError.
  void append_metrics(const nlohmann::json& record) const;
  /// Drops the records after `step`, and the half line of a killed run: what goes on there writes them anew.
  /// Throws: IoError.
  void truncate_metrics(std::int64_t step) const;

 private:
  std::filesystem::path path_;
};

}  // namespace espalier::train
