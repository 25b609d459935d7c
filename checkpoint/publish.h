// SPDX-License-Identifier: Apache-2.0
// Folders that appear whole or not at all: they are filled under "<folder>.tmp" and renamed. What they replace waits
// beside them as "<folder>.replaced" until the new one is in place.
#pragma once

#include <filesystem>

namespace espalier::checkpoint {

/// "<folder>.tmp": where `folder` is filled before it is published, and emptied when it goes.
std::filesystem::path temporary_of(const std::filesystem::path& folder);

/// Undoes what a killed run left of `folder`: a temporary is removed; what was about to be replaced is put back if the
/// new one did not arrive.
/// Throws: IoError.
void settle_leftovers(const std::filesystem::path& folder);

/// Puts the finished temporary_of(folder), all of whose files are durable, in the place of `folder`; durable on return.
/// Throws: IoError; `folder` is then as before, or already the new one where only making its name durable or removing
/// the old one failed.
void publish_folder(const std::filesystem::path& folder);

/// Takes `folder` away so that no crash leaves a part of it under its name. Throws: IoError.
void remove_published_folder(const std::filesystem::path& folder);

}  // namespace espalier::checkpoint
