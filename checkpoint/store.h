// SPDX-License-Identifier: Apache-2.0
// Checkpoints of named tensors (docs/checkpoint_format.md): step_00001200/ with one HDF5 file per writing rank and a manifest that is
// written last. A directory without a valid manifest does not exist. Names are canonical, so any layout can load any checkpoint.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "dist/communicator.h"

namespace espalier::checkpoint {

using NamedTensors = std::map<std::string, at::Tensor>;

/// A checkpoint whose files were verified (sizes and XXH3-128) before any was opened.
class LoadedCheckpoint {
 public:
  virtual ~LoadedCheckpoint() = default;
  [[nodiscard]] virtual std::int64_t step() const = 0;
  /// What the trainer put in: position, config digest, metrics.
  [[nodiscard]] virtual const nlohmann::json& state() const = 0;
  [[nodiscard]] virtual const std::filesystem::path& folder() const = 0;
  [[nodiscard]] virtual std::vector<std::string> names() const = 0;
  /// Copies the stored tensor into `target`. Throws: IoError naming file and tensor if it is missing or of another shape or type.
  virtual void read_into(const std::string& name, at::Tensor target) const = 0;
};

class CheckpointStore {
 public:
  /// `keep`: how many good checkpoints stay (0: all). Throws: IoError when the folder cannot be made.
  CheckpointStore(std::filesystem::path root, dist::Communicator& control, int keep);

  /// Writes this rank's tensors (maybe none) and, on rank 0, `state`; durable when it returns.
  /// Collective: every rank of `control`; every rank throws IoError, or none does. On failure the older checkpoints are untouched.
  std::filesystem::path save(std::int64_t step, const NamedTensors& tensors, const nlohmann::json& state);

  /// The newest good checkpoint, agreed on by all ranks; damaged ones are named in a warning and passed over. None: nullopt-like null.
  /// Collective: every rank.
  std::unique_ptr<LoadedCheckpoint> load_latest();
  /// That step. Throws: IoError on every rank if it is absent or damaged.
  std::unique_ptr<LoadedCheckpoint> load(std::int64_t step);

  /// Steps that have a manifest, ascending. Local.
  [[nodiscard]] std::vector<std::int64_t> steps() const;

 private:
  std::filesystem::path root_;
  dist::Communicator& control_;
  int keep_;
};

/// Reads and verifies a checkpoint or exported adapter without ranks (inspect, evaluate). Throws: IoError.
std::unique_ptr<LoadedCheckpoint> open_checkpoint(const std::filesystem::path& folder);

}  // namespace espalier::checkpoint
