// SPDX-License-Identifier: Apache-2.0
// Files that survive a crash. Only the order temporary, fsync, rename, fsync of the folder leaves either the old or the
// new contents under a name, never a part: a rename without the first fsync can publish an empty file, without the
// second it can be lost. Everything here throws IoError naming the path and the text of errno.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace espalier {

/// Replaces `path` by a file of `contents`, whole or not at all; no temporary stays behind on failure. The folder must
/// exist.
void write_file_durably(const std::filesystem::path& path, std::string_view contents);

/// Makes `folder` and those above it that are missing, each name durable; several processes may do so at a time.
void make_folder_durably(const std::filesystem::path& folder);

void fsync_file(const std::filesystem::path& file);
void fsync_folder(const std::filesystem::path& folder);

/// Renames a file or a folder on one file system, then makes the new name durable (and the old one's end, if it was
/// elsewhere).
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);

/// The whole file.
std::string read_file(const std::filesystem::path& path);

}  // namespace espalier
