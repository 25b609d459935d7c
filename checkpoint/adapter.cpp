// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/adapter.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include "checkpoint/manifest.h"
#include "checkpoint/publish.h"
#include "checkpoint/sealed_json.h"
#include "checkpoint/tensor_file.h"
#include "common/check.h"
#include "common/digest.h"
#include "common/durable_file.h"
#include "common/error.h"
#include "model/weights.h"

namespace fs = std::filesystem;

namespace espalier::checkpoint {
namespace {

constexpr const char* kAdapterFormat = "espalier-adapter";

/// Replacing a folder removes it: it must be an adapter or empty.
void require_replaceable(const fs::path& folder) {
  if (!fs::exists(folder)) return;
  if (!fs::is_directory(folder)) {
    throw ConfigError(fmt::format("{}: expected a folder for the adapter, found a file", folder.string()));
  }
  for (const auto& entry : fs::directory_iterator(folder)) {
    const fs::path name = entry.path().filename();
    if (name != kAdapterDescriptionName && name != kAdapterTensorsName) {
      throw ConfigError(
          fmt::format("{}: expected a new folder or an adapter to replace, found {}; choose another folder",
                      folder.string(), name.string()));
    }
  }
}

}  // namespace

void write_adapter(const fs::path& target, const Adapter& adapter) {
  // Without a final slash, so that "<folder>.tmp" stands beside it and not inside.
  const fs::path folder = target.has_filename() ? target : target.parent_path();
  for (const char* key : {"method", "options", "base_model_digest"}) {
    ESPALIER_CHECK(adapter.description.contains(key), "the adapter's description lacks {}", key);
  }
  const fs::path temporary = temporary_of(folder);
  try {
    require_replaceable(folder);
    settle_leftovers(folder);
    fs::create_directories(temporary);
    nlohmann::json entries = nlohmann::json::object();
    std::vector<std::pair<std::string, at::Tensor>> tensors;
    for (const auto& [name, tensor] : adapter.tensors) {
      tensors.emplace_back(name, tensor.detach().to(at::kCPU).contiguous());
      entries[name] = {{"shape", tensor.sizes().vec()}, {"dtype", dtype_text(tensor.scalar_type(), name)}};
    }
    const fs::path file = temporary / kAdapterTensorsName;
    model::write_safetensors(file, tensors, {{"format", "pt"}});
    fsync_file(file);
    nlohmann::json description = adapter.description;
    description["format"] = kAdapterFormat;
    description["format_version"] = kAdapterFormatVersion;
    description["tensors"] = {{"file", kAdapterTensorsName},
                              {"bytes", fs::file_size(file)},
                              {"xxh3_128", digest_of_file(file)},
                              {"entries", std::move(entries)}};
    write_file_durably(temporary / kAdapterDescriptionName, seal(description));
    publish_folder(folder);
  } catch (const fs::filesystem_error& error) {
    throw IoError(fmt::format("{}: the adapter cannot be written: {}", folder.string(), error.what()));
  }
}

Adapter read_adapter(const fs::path& folder) {
  const fs::path file = folder / kAdapterDescriptionName;
  if (!fs::exists(file)) {
    throw ConfigError(
        fmt::format("{}: expected an exported adapter, found no {}", folder.string(), kAdapterDescriptionName));
  }
  Adapter adapter;
  adapter.description = unseal(read_file(file), file);
  try {
    const auto format = adapter.description.value("format", std::string());
    const auto version = adapter.description.value("format_version", 0);
    if (format != kAdapterFormat || version != kAdapterFormatVersion) {
      throw ConfigError(
          fmt::format("{}: expected format {} version {}, found '{}' version {}; use the Espalier that wrote it",
                      file.string(), kAdapterFormat, kAdapterFormatVersion, format, version));
    }
    const nlohmann::json& tensors = adapter.description.at("tensors");
    verify_file(folder, kAdapterTensorsName, {tensors.at("bytes"), tensors.at("xxh3_128")});
  } catch (const nlohmann::json::exception& error) {
    throw IoError(fmt::format("{}: a key is missing or of another type: {}", file.string(), error.what()));
  }
  const auto source = model::open_safetensors(folder / kAdapterTensorsName);
  for (const std::string& name : source->names()) {
    adapter.tensors.emplace(name, source->get(name).clone());  // the source's tensors are a read-only map of the file
  }
  return adapter;
}

}  // namespace espalier::checkpoint
