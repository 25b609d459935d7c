// SPDX-License-Identifier: Apache-2.0
// The one LoadedCheckpoint of checkpoints: a manifest whose files were verified. HDF5 opens a file when its first
// tensor is read.
#pragma once

#include <filesystem>
#include <memory>

#include "checkpoint/store.h"

namespace espalier::checkpoint {

/// Requires: every file of `manifest` passed verify_file. Thread: not shared.
std::unique_ptr<LoadedCheckpoint> make_loaded(std::filesystem::path folder, Manifest manifest);

}  // namespace espalier::checkpoint
