// SPDX-License-Identifier: Apache-2.0
// Checkpoints of named tensors (docs/checkpoint_format.md): step_00001200/ with one HDF5 file per writing rank and a
// manifest that is written last. A directory without a valid manifest does not exist. Names are canonical, so any
// layout can load any checkpoint.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/tensor_file.h"
#include "common/hdf5_file.h"
#include "dist/communicator.h"

namespace espalier::checkpoint {

/// A checkpoint whose files were verified (sizes and XXH3-128) before any was opened. HDF5 opens a file when its first
/// tensor is read. Thread: not shared.
class LoadedCheckpoint {
 public:
  /// Requires: every file of `manifest` passed verify_file.
  LoadedCheckpoint(std::filesystem::path folder, Manifest manifest)
      : folder_(std::move(folder)), manifest_(std::move(manifest)) {}

  [[nodiscard]] std::int64_t step() const { return manifest_.step; }
  /// What the trainer put in: its options, digests of backbone and dataset, how far each objective has come.
  [[nodiscard]] const nlohmann::json& state() const { return manifest_.state; }
  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
  /// Sorted.
  [[nodiscard]] std::vector<std::string> names() const;
  /// File, shape and type of a stored tensor. Throws: IoError naming folder and tensor if it is missing.
  [[nodiscard]] const TensorEntry& entry(const std::string& name) const;
  /// Copies the stored tensor into `target`.
  /// Throws: IoError naming file and tensor if it is missing or of another shape or type.
  void read_into(const std::string& name, const at::Tensor& target) const;

 private:
  [[nodiscard]] Hdf5File open(const std::string& name) const;

  std::filesystem::path folder_;
  Manifest manifest_;
  mutable std::map<std::string, Hdf5File> files_;
};

class CheckpointStore {
 public:
  /// `keep`: how many checkpoints stay, the newest of the steps up to the one just saved (0: all).
  /// Requires: `root` lies on a file system that all ranks share, and `control` outlives the store.
  /// Throws: IoError when the folder cannot be made.
  CheckpointStore(std::filesystem::path root, dist::Communicator& control, int keep);

  /// Writes this rank's tensors (maybe none; a name comes from one rank only) and rank 0's `state`.
  /// Durable when it returns. A checkpoint of the same step is replaced; failing to remove old ones is only a warning.
  /// Collective: every rank of `control`.
  /// Throws: IoError, on every rank or on none; the older checkpoints are untouched then. A defect and a lack of memory
  /// are InternalErrors, alike.
  std::filesystem::path save(std::int64_t step, const NamedTensors& tensors, const nlohmann::json& state);

  /// The newest good checkpoint, agreed on by all ranks; damaged ones are named in a warning and passed over.
  /// Null when the folder holds no checkpoint.
  /// Collective: every rank.
  /// Throws: IoError on every rank when there are checkpoints and none is good: a fresh start would write over them.
  std::unique_ptr<LoadedCheckpoint> load_latest();
  /// That step.
  /// Collective: every rank.
  /// Throws: IoError on every rank if it is absent or damaged.
  std::unique_ptr<LoadedCheckpoint> load(std::int64_t step);

  /// Steps that have a manifest, ascending. Local.
  [[nodiscard]] std::vector<std::int64_t> steps() const;

  /// Called on each rank before it does what can fail in save(): "prepare", "write", "sync", "manifest", "commit",
  /// "prune", with the path at hand. What it throws counts as a failure of that action. For tests of durability.
  using FaultHook = std::function<void(std::string_view action, const std::filesystem::path& path)>;
  void set_fault_hook(FaultHook hook) { fault_hook_ = std::move(hook); }

 private:
  void before(std::string_view action, const std::filesystem::path& path) const;
  [[nodiscard]] std::filesystem::path folder_of(std::int64_t step) const;
  [[nodiscard]] std::string write_own_file(const std::filesystem::path& temporary, const NamedTensors& tensors) const;
  void commit(std::int64_t step, const std::vector<std::string>& parts, const nlohmann::json& state) const;
  void prune(std::int64_t newest_step) const;
  [[nodiscard]] Manifest verify_over_ranks(std::int64_t step) const;

  std::filesystem::path root_;
  dist::Communicator& control_;
  int keep_;
  FaultHook fault_hook_;
};

/// Reads and verifies a checkpoint without ranks (inspect).
/// Throws: IoError (absent, damaged, or of another format version).
std::unique_ptr<LoadedCheckpoint> open_checkpoint(const std::filesystem::path& folder);

/// Bytes of all files of a checkpoint, as the file system has them. Throws: IoError.
std::int64_t stored_bytes(const std::filesystem::path& folder);

}  // namespace espalier::checkpoint
