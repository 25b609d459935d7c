// SPDX-License-Identifier: Apache-2.0
// A folder for other programs, written whole or not at all.
#pragma once

#include <filesystem>
#include <functional>

namespace espalier::launch {

/// Calls `fill` with a temporary folder beside `folder`, makes every file in it durable and puts it in place.
/// Throws: ConfigError when `folder` is there and not empty; IoError.
void write_new_folder(const std::filesystem::path& folder,
                      const std::function<void(const std::filesystem::path& temporary)>& fill);

}  // namespace espalier::launch
