// SPDX-License-Identifier: Apache-2.0
// Named tensors in one HDF5 file, a contiguous dataset each. HDF5 has no 16-bit floats: they are stored as uint16 with
// an attribute "dtype" that says what the bits mean.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

#include "checkpoint/manifest.h"
#include "common/hdf5_file.h"

namespace espalier::checkpoint {

using NamedTensors = std::map<std::string, at::Tensor>;

/// "float32" for at::kFloat, and so on. Throws: IoError naming `what` for a type that is not stored.
std::string dtype_text(at::ScalarType dtype, const std::string& what);

/// Writes every tensor (one host copy at a time) and says what was written. Not durable: the caller syncs.
/// Throws: IoError naming file and tensor.
std::map<std::string, TensorEntry> write_tensor_file(const std::filesystem::path& file, const NamedTensors& tensors);

/// Copies a stored tensor into `target`, on any device, after checking shape, type and digest; `target` is written
/// last.
/// Throws: IoError naming file and tensor.
void read_tensor(const Hdf5File& file, const std::string& name, const TensorEntry& entry, const at::Tensor& target);

}  // namespace espalier::checkpoint
