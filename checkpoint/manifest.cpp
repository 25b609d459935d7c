// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/manifest.h"

#include <spdlog/fmt/fmt.h>

#include "checkpoint/sealed_json.h"
#include "common/digest.h"
#include "common/error.h"

namespace espalier::checkpoint {
namespace {

constexpr const char* kCheckpointFormat = "espalier-checkpoint";

/// A file name that cannot leave the folder.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name.front() != '.' && name.find_first_of("/\\") == std::string::npos;
}

}  // namespace

nlohmann::json to_json(const Manifest& part) {
  nlohmann::json files = nlohmann::json::object();
  for (const auto& [name, entry] : part.files) {
    files[name] = {{"bytes", entry.bytes}, {"xxh3_128", entry.digest}};
  }
  nlohmann::json tensors = nlohmann::json::object();
  for (const auto& [name, entry] : part.tensors) {
    tensors[name] = {{"file", entry.file}, {"shape", entry.shape}, {"dtype", entry.dtype}, {"xxh3_128", entry.digest}};
  }
  return {{"files", std::move(files)}, {"tensors", std::move(tensors)}};
}

void merge(Manifest& whole, const nlohmann::json& part, const std::filesystem::path& file) {
  for (const auto& [name, entry] : part.at("files").items()) {
    if (!is_plain_name(name)) throw IoError(fmt::format("{}: files: '{}' is no plain file name", file.string(), name));
    const bool is_new = whole.files.try_emplace(name, FileEntry{entry.at("bytes"), entry.at("xxh3_128")}).second;
    if (!is_new) throw IoError(fmt::format("{}: expected each file once, found {} twice", file.string(), name));
  }
  for (const auto& [name, entry] : part.at("tensors").items()) {
    const TensorEntry tensor{entry.at("file"), entry.at("shape"), entry.at("dtype"), entry.at("xxh3_128")};
    if (!whole.files.contains(tensor.file)) {
      throw IoError(fmt::format("{}: tensor {}: its file {} is not listed", file.string(), name, tensor.file));
    }
    const auto [place, is_new] = whole.tensors.try_emplace(name, tensor);
    if (!is_new) {
      throw IoError(
          fmt::format("{}: expected tensor {} from one rank, found it in {} and {}; only one rank may save a name",
                      file.string(), name, place->second.file, tensor.file));
    }
  }
}

std::string to_text(const Manifest& manifest) {
  nlohmann::json object = to_json(manifest);
  object["format"] = kCheckpointFormat;
  object["format_version"] = kCheckpointFormatVersion;
  object["step"] = manifest.step;
  object["state"] = manifest.state;
  return seal(object);
}

Manifest parse_manifest(std::string_view text, const std::filesystem::path& file) {
  const nlohmann::json object = unseal(text, file);
  try {
    const auto format = object.value("format", std::string());
    const auto version = object.value("format_version", 0);
    if (format != kCheckpointFormat || version != kCheckpointFormatVersion) {
      throw IoError(
          fmt::format("{}: expected format {} version {}, found '{}' version {}; use the Espalier that wrote it",
                      file.string(), kCheckpointFormat, kCheckpointFormatVersion, format, version));
    }
    Manifest manifest;
    manifest.step = object.at("step");
    manifest.state = object.at("state");
    merge(manifest, object, file);
    return manifest;
  } catch (const nlohmann::json::exception& error) {
    throw IoError(fmt::format("{}: a key is missing or of another type: {}", file.string(), error.what()));
  }
}

void verify_file(const std::filesystem::path& folder, const std::string& name, const FileEntry& entry) {
  const std::filesystem::path file = folder / name;
  std::error_code error;
  const auto bytes = std::filesystem::file_size(file, error);
  if (error) {
    throw IoError(
        fmt::format("{}: expected {} bytes, found no readable file: {}", file.string(), entry.bytes, error.message()));
  }
  if (static_cast<std::int64_t>(bytes) != entry.bytes) {
    throw IoError(fmt::format("{}: expected {} bytes, found {}; the file is truncated or was replaced", file.string(),
                              entry.bytes, bytes));
  }
  const std::string digest = digest_of_file(file);
  if (digest != entry.digest) {
    throw IoError(
        fmt::format("{}: expected XXH3-128 {}, found {}; the file is damaged", file.string(), entry.digest, digest));
  }
}

}  // namespace espalier::checkpoint
