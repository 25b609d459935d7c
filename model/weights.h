// SPDX-License-Identifier: Apache-2.0
// Where weights come from: the safetensors of a Hugging Face folder (single or sharded), mapped read-only, or random numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace espalier::model {

/// Named tensors as stored. Thread: const methods are safe.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  [[nodiscard]] virtual bool contains(const std::string& name) const = 0;
  /// Stored shape. Requires: contains(name).
  [[nodiscard]] virtual std::vector<std::int64_t> shape(const std::string& name) const = 0;
  /// A read-only view of the mapped file in its stored type (writing to it is SIGSEGV); it keeps the map alive.
  [[nodiscard]] virtual at::Tensor get(const std::string& name) const = 0;
  [[nodiscard]] virtual std::vector<std::string> names() const = 0;
  /// XXH3-128 over names, types, shapes and bytes, for checkpoints; computed once, on demand.
  [[nodiscard]] virtual std::string digest() const = 0;
};

/// One safetensors file. Everything is validated against the file's size before anything is allocated for it.
/// Throws: ConfigError naming file, tensor or key, expected and found.
std::unique_ptr<WeightSource> open_safetensors(const std::filesystem::path& file);

/// model.safetensors, or model.safetensors.index.json with its shards (none may lie outside the folder).
std::unique_ptr<WeightSource> open_model_folder(const std::filesystem::path& folder);

/// Writes a safetensors file: durable only after the caller's fsync and rename (common/durable_file.h).
/// Tensors are stored contiguous, in the order given. Throws: IoError.
void write_safetensors(const std::filesystem::path& file, const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                       const std::vector<std::pair<std::string, std::string>>& metadata);

}  // namespace espalier::model
