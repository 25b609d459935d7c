// SPDX-License-Identifier: Apache-2.0
// manifest.json: what a checkpoint consists of (docs/checkpoint_format.md). It is written last and removed first, so
// its presence is what makes a folder a checkpoint; its digests are what makes the files trustworthy before HDF5 opens
// them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace espalier::checkpoint {

/// On disk. Raised when a reader of the older version would misread the newer.
inline constexpr int kCheckpointFormatVersion = 1;
inline constexpr const char* kManifestName = "manifest.json";

struct FileEntry {
  std::int64_t bytes = 0;
  std::string digest;  ///< XXH3-128 of the file
};

struct TensorEntry {
  std::string file;
  std::vector<std::int64_t> shape;
  std::string dtype;   ///< "float32", "bfloat16", ...: the names of checkpoint/tensor_file.h
  std::string digest;  ///< XXH3-128 of the elements in row-major order, little-endian
};

struct Manifest {
  std::int64_t step = 0;
  nlohmann::json state;                        ///< the trainer's
  std::map<std::string, FileEntry> files;      ///< by name inside the folder
  std::map<std::string, TensorEntry> tensors;  ///< by canonical name
};

/// The sealed text of manifest.json.
std::string to_text(const Manifest& manifest);
/// Throws: IoError naming `file` and the key, for anything that is damaged, of another version or contradicts itself.
Manifest parse_manifest(std::string_view text, const std::filesystem::path& file);

/// What one rank tells the others of its file, and back.
nlohmann::json to_json(const Manifest& part);
/// Adds `part` to `whole`. Throws: IoError naming a tensor or file that both have, and the files it is in.
void merge(Manifest& whole, const nlohmann::json& part, const std::filesystem::path& file);

/// Compares size and digest of one file with its entry. Throws: IoError naming the file, expected and found.
void verify_file(const std::filesystem::path& folder, const std::string& name, const FileEntry& entry);

}  // namespace espalier::checkpoint
