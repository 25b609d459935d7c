// SPDX-License-Identifier: Apache-2.0
// Where weights come from: the safetensors of a Hugging Face folder (single or sharded), mapped read-only, or random
// numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace espalier::model {

/// Named tensors as stored. Thread: const methods are safe.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  [[nodiscard]] virtual bool contains(const std::string& name) const = 0;
  /// Stored shape. Requires: contains(name).
  [[nodiscard]] virtual std::vector<std::int64_t> shape(const std::string& name) const = 0;
  /// A read-only view of the mapped file in its stored type (writing to it is SIGSEGV); it keeps the map alive. A copy
  /// only where the file does not align it. Requires: contains(name). Throws: IoError if the file changed since it was
  /// opened.
  [[nodiscard]] virtual at::Tensor get(const std::string& name) const = 0;
  /// Sorted.
  [[nodiscard]] virtual std::vector<std::string> names() const = 0;
  /// Gives back the resident memory of a tensor's mapped pages; views of it stay valid and read them again when used.
  /// For whoever has copied or converted what get() gave. Requires: contains(name).
  virtual void drop_pages(const std::string& /*name*/) const {}
  /// Whether both hold the same bytes in one type and shape; compared once, at the speed of memory or of the disk.
  /// Requires: contains() of both. Throws: IoError as get().
  [[nodiscard]] bool is_copy(const std::string& name, const std::string& other) const;
  /// XXH3-128 over names, types, shapes and bytes, for checkpoints; computed once, on demand. The same for a model in
  /// one file and in shards. Throws: IoError as get().
  [[nodiscard]] virtual std::string digest() const;

 private:
  mutable std::mutex digest_mutex_, copies_mutex_;
  mutable std::string digest_;
  mutable std::map<std::pair<std::string, std::string>, bool> copies_;  // what is_copy() found
};

/// One safetensors file. Everything is validated against the file's size before anything is allocated for it.
/// Throws: ConfigError naming file, tensor or key, expected and found; IoError where the file cannot be read.
std::unique_ptr<WeightSource> open_safetensors(const std::filesystem::path& file);

/// model.safetensors, or model.safetensors.index.json with its shards: none may be named outside the folder, every
/// tensor is in the shard that the index says and nowhere else. Throws: as open_safetensors().
std::unique_ptr<WeightSource> open_model_folder(const std::filesystem::path& folder);

/// Writes a safetensors file: durable only after the caller's fsync and rename (common/durable_file.h).
/// Tensors are stored contiguous, in the order given; their data starts at a multiple of 8 bytes.
/// Requires: distinct names and keys, defined dense tensors of F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL.
/// Throws: IoError.
void write_safetensors(const std::filesystem::path& file,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                       const std::vector<std::pair<std::string, std::string>>& metadata);

/// Numbers instead of a file, for tests and benchmarks: N(0, deviation^2) by name, drawn anew at every get(), so that a
/// model of any size costs no memory until it is used. Vectors called "*.weight" are norms and stand around 1.
std::unique_ptr<WeightSource> random_weights(
    const std::vector<std::pair<std::string, std::vector<std::int64_t>>>& shapes, double deviation, std::uint64_t seed,
    at::ScalarType type = at::kFloat);

}  // namespace espalier::model
