// SPDX-License-Identifier: Apache-2.0
// An exported adapter: adapter.json (what it is, digests) beside adapter.safetensors (trained tensors by canonical name).
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace espalier::checkpoint {

struct Adapter {
  nlohmann::json description;  ///< "format_version", "method", "options" (INI text), "base_model_digest", "tensors"
  std::map<std::string, at::Tensor> tensors;
};

/// Writes into `folder`, atomically (temporary folder, fsync, rename). Throws: IoError.
void write_adapter(const std::filesystem::path& folder, const Adapter& adapter);
/// Verifies the digest of the tensors. Throws: IoError (damaged), ConfigError (not an adapter, other format version).
Adapter read_adapter(const std::filesystem::path& folder);

}  // namespace espalier::checkpoint
