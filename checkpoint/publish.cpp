// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/publish.h"

#include <spdlog/fmt/fmt.h>

#include "common/durable_file.h"
#include "common/error.h"

namespace fs = std::filesystem;

namespace espalier::checkpoint {
namespace {

fs::path with_suffix(fs::path folder, const char* suffix) {
  return folder += suffix;
}
fs::path replaced_of(const fs::path& folder) {
  return with_suffix(folder, ".replaced");
}

void remove_tree(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) throw IoError(fmt::format("{}: cannot be removed: {}", folder.string(), error.message()));
}

}  // namespace

fs::path temporary_of(const fs::path& folder) {
  return with_suffix(folder, ".tmp");
}

void settle_leftovers(const fs::path& folder) {
  remove_tree(temporary_of(folder));
  if (fs::exists(replaced_of(folder)) && !fs::exists(folder)) {
    rename_durably(replaced_of(folder), folder);
  } else {
    remove_tree(replaced_of(folder));
  }
}

void publish_folder(const fs::path& folder) {
  const bool replaces = fs::exists(folder);
  if (replaces) rename_durably(folder, replaced_of(folder));
  try {
    rename_durably(temporary_of(folder), folder);
  } catch (const IoError&) {
    std::error_code ignored;  // the first failure is the one to report
    if (replaces && !fs::exists(folder, ignored)) fs::rename(replaced_of(folder), folder, ignored);
    throw;
  }
  if (replaces) remove_tree(replaced_of(folder));
}

void remove_published_folder(const fs::path& folder) {
  rename_durably(folder, temporary_of(folder));
  remove_tree(temporary_of(folder));
}

}  // namespace espalier::checkpoint
