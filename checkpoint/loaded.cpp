// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/loaded.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include "checkpoint/adapter.h"
#include "common/durable_file.h"
#include "common/error.h"
#include "common/hdf5_file.h"

namespace fs = std::filesystem;

namespace espalier::checkpoint {
namespace {

class VerifiedCheckpoint final : public LoadedCheckpoint {
 public:
  VerifiedCheckpoint(fs::path folder, Manifest manifest) : folder_(std::move(folder)), manifest_(std::move(manifest)) {}

  [[nodiscard]] std::int64_t step() const override { return manifest_.step; }
  [[nodiscard]] const nlohmann::json& state() const override { return manifest_.state; }
  [[nodiscard]] const fs::path& folder() const override { return folder_; }

  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, entry] : manifest_.tensors) names.push_back(name);
    return names;
  }

  [[nodiscard]] const TensorEntry& entry(const std::string& name) const override {
    const auto place = manifest_.tensors.find(name);
    if (place == manifest_.tensors.end()) {
      throw IoError(fmt::format("{}: expected tensor {}, found {} others; the run that saved it had other options",
                                folder_.string(), name, manifest_.tensors.size()));
    }
    return place->second;
  }

  void read_into(const std::string& name, at::Tensor target) const override {
    const TensorEntry& stored = entry(name);
    auto file = files_.find(stored.file);
    if (file == files_.end()) file = files_.emplace(stored.file, open(stored.file)).first;
    read_tensor(file->second, name, stored, target);
  }

 private:
  [[nodiscard]] Hdf5File open(const std::string& name) const {
    try {
      return Hdf5File::open(folder_ / name);
    } catch (const ConfigError& error) {  // it passed its digest, so it is not the user's mistake
      throw IoError(error.what());
    }
  }

  fs::path folder_;
  Manifest manifest_;
  mutable std::map<std::string, Hdf5File> files_;
};

class AdapterAsCheckpoint final : public LoadedCheckpoint {
 public:
  explicit AdapterAsCheckpoint(fs::path folder) : folder_(std::move(folder)), adapter_(read_adapter(folder_)) {
    for (const auto& [name, tensor] : adapter_.tensors) {
      entries_[name] = {kAdapterTensorsName, tensor.sizes().vec(), dtype_text(tensor.scalar_type(), name), ""};
    }
  }

  [[nodiscard]] std::int64_t step() const override { return adapter_.description.value("step", std::int64_t{0}); }
  [[nodiscard]] const nlohmann::json& state() const override { return adapter_.description; }
  [[nodiscard]] const fs::path& folder() const override { return folder_; }

  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : adapter_.tensors) names.push_back(name);
    return names;
  }

  [[nodiscard]] const TensorEntry& entry(const std::string& name) const override {
    const auto place = entries_.find(name);
    if (place == entries_.end()) {
      throw IoError(
          fmt::format("{}: expected tensor {}, found {} others; the adapter belongs to another method or backbone",
                      folder_.string(), name, entries_.size()));
    }
    return place->second;
  }

  void read_into(const std::string& name, at::Tensor target) const override {
    const TensorEntry& stored = entry(name);
    const std::string what = fmt::format("{}: tensor {}", (folder_ / stored.file).string(), name);
    require_alike(stored, target, what);
    const at::NoGradGuard no_grad;
    target.copy_(adapter_.tensors.at(name));
  }

 private:
  fs::path folder_;
  Adapter adapter_;
  std::map<std::string, TensorEntry> entries_;
};

}  // namespace

std::unique_ptr<LoadedCheckpoint> make_loaded(fs::path folder, Manifest manifest) {
  return std::make_unique<VerifiedCheckpoint>(std::move(folder), std::move(manifest));
}

std::unique_ptr<LoadedCheckpoint> open_checkpoint(const fs::path& folder) {
  if (fs::exists(folder / kAdapterDescriptionName)) return std::make_unique<AdapterAsCheckpoint>(folder);
  Manifest manifest = parse_manifest(read_file(folder / kManifestName), folder / kManifestName);
  for (const auto& [name, entry] : manifest.files) verify_file(folder, name, entry);
  return make_loaded(folder, std::move(manifest));
}

}  // namespace espalier::checkpoint
