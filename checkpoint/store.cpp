// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/store.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <optional>
#include <set>

#include "checkpoint/publish.h"
#include "common/digest.h"
#include "common/durable_file.h"
#include "common/error.h"
#include "common/log.h"
#include "dist/agree.h"

namespace fs = std::filesystem;

namespace espalier::checkpoint {
namespace {

std::string folder_name(std::int64_t step) {
  return fmt::format("step_{:08d}", step);
}

/// The step whose folder is called so, if any.
std::optional<std::int64_t> step_of(const std::string& name) {
  constexpr std::string_view kPrefix = "step_";
  constexpr std::size_t kMaxDigits = 18;  // stays within 63 bits
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const std::string digits = name.substr(kPrefix.size());
  if (digits.empty() || digits.size() > kMaxDigits || digits.find_first_not_of("0123456789") != std::string::npos) {
    return std::nullopt;
  }
  const std::int64_t step = std::stoll(digits);
  return folder_name(step) == name ? std::optional(step) : std::nullopt;
}

std::vector<std::string> names_in(const fs::path& root) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(root, error), end; !error && entry != end; entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  if (error) throw IoError(fmt::format("{}: cannot be listed: {}", root.string(), error.message()));
  return names;
}

/// Every step's folder whose publishing or removal a killed run did not finish. For the writer of `root` only: a reader
/// would take a running save for a dead one.
void settle_all_leftovers(const fs::path& root) {
  std::set<fs::path> folders;
  for (const fs::path name : names_in(root)) {
    if (!name.has_extension() || !step_of(name.stem().string())) continue;
    if (name.extension() == ".tmp" || name.extension() == ".replaced") folders.insert(root / name.stem());
  }
  for (const fs::path& folder : folders) settle_leftovers(folder);
}

/// Runs `action` on every rank. Collective: every rank.  Throws: on every rank when it failed on any; an IoError,
/// unless it was a defect or the lack of memory.
void run_together(dist::Communicator& control, const char* what, const std::function<void()>& action) {
  dist::together(control, what, action, ExitCode::kStorage);
}

}  // namespace

std::vector<std::string> LoadedCheckpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : manifest_.tensors) names.push_back(name);
  return names;
}

const TensorEntry& LoadedCheckpoint::entry(const std::string& name) const {
  const auto place = manifest_.tensors.find(name);
  if (place == manifest_.tensors.end()) {
    throw IoError(fmt::format("{}: expected tensor {}, found {} others; the run that saved it had other options",
                              folder_.string(), name, manifest_.tensors.size()));
  }
  return place->second;
}

void LoadedCheckpoint::read_into(const std::string& name, const at::Tensor& target) const {
  const TensorEntry& stored = entry(name);
  auto file = files_.find(stored.file);
  if (file == files_.end()) file = files_.emplace(stored.file, open(stored.file)).first;
  read_tensor(file->second, name, stored, target);
}

Hdf5File LoadedCheckpoint::open(const std::string& name) const {
  try {
    return Hdf5File::open(folder_ / name);
  } catch (const ConfigError& error) {  // it passed its digest, so it is not the user's mistake
    throw IoError(error.what());
  }
}

CheckpointStore::CheckpointStore(fs::path root, dist::Communicator& control, int keep)
    : root_(std::move(root)), control_(control), keep_(keep) {
  make_folder_durably(root_);
}

fs::path CheckpointStore::folder_of(std::int64_t step) const {
  return root_ / folder_name(step);
}

void CheckpointStore::before(std::string_view action, const fs::path& path) const {
  if (fault_hook_) fault_hook_(action, path);
}

fs::path CheckpointStore::save(std::int64_t step, const NamedTensors& tensors, const nlohmann::json& state) {
  fs::path folder = folder_of(step);
  const fs::path temporary = temporary_of(folder);
  const bool leads = control_.rank() == 0;
  try {
    run_together(control_, "making the checkpoint's folder", [&] {
      if (!leads) return;
      before("prepare", temporary);
      settle_all_leftovers(root_);
      fs::create_directory(temporary);
    });
    std::string part;
    run_together(control_, "writing the checkpoint", [&] { part = write_own_file(temporary, tensors); });
    std::vector<std::string> parts;
    parts.reserve(static_cast<std::size_t>(control_.num_ranks()));
    for (int rank = 0; rank < control_.num_ranks(); ++rank) parts.push_back(dist::broadcast_text(control_, part, rank));
    run_together(control_, "committing the checkpoint", [&] {
      if (leads) commit(step, parts, state);
    });
  } catch (const Error&) {
    std::error_code ignored;  // the first failure is the one to report; a later run's save settles what stays
    if (leads) fs::remove_all(temporary, ignored);
    throw;
  }
  if (leads) log_info("checkpoint", "saved {}: {} bytes", folder.string(), stored_bytes(folder));
  return folder;
}

std::string CheckpointStore::write_own_file(const fs::path& temporary, const NamedTensors& tensors) const {
  Manifest part;
  if (!tensors.empty()) {
    if (!fs::is_directory(temporary)) {
      throw IoError(fmt::format(
          "{}: rank 0 made this folder, this rank does not see it; checkpoints need a folder that all ranks share",
          temporary.string()));
    }
    const std::string name = fmt::format("rank_{:04d}.h5", control_.rank());
    const fs::path file = temporary / name;
    before("write", file);
    part.tensors = write_tensor_file(file, tensors);
    before("sync", file);
    fsync_file(file);
    fsync_folder(temporary);
    part.files[name] = {static_cast<std::int64_t>(fs::file_size(file)), digest_of_file(file)};
  }
  return to_json(part).dump();
}

void CheckpointStore::commit(std::int64_t step, const std::vector<std::string>& parts,
                             const nlohmann::json& state) const {
  const fs::path folder = folder_of(step);
  const fs::path temporary = temporary_of(folder);
  const fs::path manifest_file = temporary / kManifestName;
  Manifest manifest;
  manifest.step = step;
  manifest.state = state;
  for (const std::string& part : parts) merge(manifest, nlohmann::json::parse(part), manifest_file);
  for (const auto& [name, entry] : manifest.files) {
    std::error_code error;
    const auto bytes = fs::file_size(temporary / name, error);
    if (error || static_cast<std::int64_t>(bytes) != entry.bytes) {
      throw IoError(
          fmt::format("{}: its rank wrote {} bytes, rank 0 finds {}; checkpoints need a folder that all ranks share",
                      (temporary / name).string(), entry.bytes, error ? error.message() : fmt::to_string(bytes)));
    }
  }
  before("manifest", manifest_file);
  write_file_durably(manifest_file, to_text(manifest));
  before("commit", folder);
  publish_folder(folder);
  try {
    prune(step);
  } catch (const std::exception& error) {  // whatever it is: the checkpoint is there
    log_warning("checkpoint", "{} is saved, but older ones stay: {}", folder.string(), error.what());
  }
}

void CheckpointStore::prune(std::int64_t newest_step) const {
  if (keep_ <= 0) return;
  std::vector<std::int64_t> candidates = steps();
  // Later steps are another branch of the run, which was left by resuming before it: not ours to count or remove.
  std::erase_if(candidates, [&](std::int64_t step) { return step > newest_step; });
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep_) < candidates.size(); ++i) {
    before("prune", folder_of(candidates[i]));
    remove_published_folder(folder_of(candidates[i]));
  }
}

std::vector<std::int64_t> CheckpointStore::steps() const {
  std::vector<std::int64_t> steps;
  for (const std::string& name : names_in(root_)) {
    const auto step = step_of(name);
    if (step && fs::exists(root_ / name / kManifestName)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

Manifest CheckpointStore::verify_over_ranks(std::int64_t step) const {
  const fs::path folder = folder_of(step);
  const fs::path manifest_file = folder / kManifestName;
  // Rank 0 reads the manifest for all, so that they judge the same bytes; each file is hashed by one rank.
  std::string text;
  run_together(control_, "reading a checkpoint's manifest", [&] {
    if (control_.rank() == 0) text = read_file(manifest_file);
  });
  text = dist::broadcast_text(control_, text);
  Manifest manifest;
  run_together(control_, "verifying a checkpoint", [&] {
    manifest = parse_manifest(text, manifest_file);
    if (manifest.step != step) {
      throw IoError(fmt::format("{}: expected step {}, found {}", manifest_file.string(), step, manifest.step));
    }
    int index = 0;
    for (const auto& [name, entry] : manifest.files) {
      if (index++ % control_.num_ranks() == control_.rank()) verify_file(folder, name, entry);
    }
  });
  return manifest;
}

std::unique_ptr<LoadedCheckpoint> CheckpointStore::load_latest() {
  std::string listed;
  run_together(control_, "listing the checkpoints", [&] {
    if (control_.rank() == 0) listed = nlohmann::json(steps()).dump();
  });
  const auto candidates =
      nlohmann::json::parse(dist::broadcast_text(control_, listed)).get<std::vector<std::int64_t>>();
  std::string problems;
  for (auto step = candidates.rbegin(); step != candidates.rend(); ++step) {
    try {
      return load(*step);
    } catch (const IoError& error) {  // thrown on every rank or on none
      if (control_.rank() == 0) log_warning("checkpoint", "passed over a damaged checkpoint: {}", error.what());
      problems += fmt::format("\n  {}", error.what());
    }
  }
  if (!problems.empty()) {
    dist::throw_agreed<IoError>(
        fmt::format("{}: expected a good one among {}, found none; move them away to start anew:{}", root_.string(),
                    candidates.size(), problems));
  }
  return nullptr;
}

std::unique_ptr<LoadedCheckpoint> CheckpointStore::load(std::int64_t step) {
  return std::make_unique<LoadedCheckpoint>(folder_of(step), verify_over_ranks(step));
}

std::unique_ptr<LoadedCheckpoint> open_checkpoint(const fs::path& folder) {
  Manifest manifest = parse_manifest(read_file(folder / kManifestName), folder / kManifestName);
  for (const auto& [name, entry] : manifest.files) verify_file(folder, name, entry);
  return std::make_unique<LoadedCheckpoint>(folder, std::move(manifest));
}

std::int64_t stored_bytes(const fs::path& folder) {
  std::int64_t bytes = 0;
  for (const std::string& name : names_in(folder)) {
    std::error_code error;
    bytes += static_cast<std::int64_t>(fs::file_size(folder / name, error));
    if (error) throw IoError(fmt::format("{}: its size cannot be read: {}", (folder / name).string(), error.message()));
  }
  return bytes;
}

}  // namespace espalier::checkpoint
