// SPDX-License-Identifier: Apache-2.0
// An exported adapter: adapter.json (what it is, digests; sealed) beside adapter.safetensors (trained tensors by
// canonical name). Format: docs/adapter_format.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace espalier::checkpoint {

inline constexpr int kAdapterFormatVersion = 1;
inline constexpr const char* kAdapterDescriptionName = "adapter.json";
inline constexpr const char* kAdapterTensorsName = "adapter.safetensors";

struct Adapter {
  /// The caller gives "method", "options" (INI text), "base_model_digest" and what else it likes; "format",
  /// "format_version" and "tensors" are written over.
  nlohmann::json description;
  std::map<std::string, at::Tensor> tensors;  ///< by canonical name
};

/// Writes into `folder`, atomically (temporary folder, fsync, rename); an adapter that is there is replaced.
/// Collective: no; one rank writes. Throws: IoError; ConfigError when `folder` holds something else; InternalError when
/// the description lacks a key that the caller gives.
void write_adapter(const std::filesystem::path& folder, const Adapter& adapter);
/// Verifies description and tensors by their digests before anything else looks at them.
/// Throws: IoError (damaged or incomplete), ConfigError (not an adapter, other format version).
Adapter read_adapter(const std::filesystem::path& folder);

}  // namespace espalier::checkpoint
