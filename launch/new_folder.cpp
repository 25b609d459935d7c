// SPDX-License-Identifier: Apache-2.0
#include "launch/new_folder.h"

#include <spdlog/fmt/fmt.h>

#include "checkpoint/publish.h"
#include "common/durable_file.h"
#include "common/error.h"

namespace fs = std::filesystem;

namespace espalier::launch {

void write_new_folder(const fs::path& target, const std::function<void(const fs::path& temporary)>& fill) {
  // Without a final slash, so that "<folder>.tmp" stands beside it and not inside.
  const fs::path folder = target.has_filename() ? target : target.parent_path();
  try {
    if (fs::exists(folder) && !(fs::is_directory(folder) && fs::is_empty(folder))) {
      throw ConfigError(
          fmt::format("{}: expected a new or empty folder to export to, found a file or a filled one; choose another",
                      folder.string()));
    }
    checkpoint::settle_leftovers(folder);
    const fs::path temporary = checkpoint::temporary_of(folder);
    fs::create_directories(temporary);
    fill(temporary);
    for (const auto& file : fs::directory_iterator(temporary)) {
      fsync_file(file.path());
    }
    checkpoint::publish_folder(folder);
  } catch (const fs::filesystem_error& error) {
    throw IoError(fmt::format("{}: the folder cannot be written: {}", folder.string(), error.what()));
  }
}

}  // namespace espalier::launch
