// SPDX-License-Identifier: Apache-2.0
// JSON that notices its own damage. The first line holds the XXH3-128 of all bytes after it, so that a flipped bit in a
// step number or a gate temperature is found like one in a tensor; the whole is plain JSON for any other reader.
// Grammar: docs/checkpoint_format.md, "Sealed JSON".
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace espalier::checkpoint {

/// Requires: an object with at least one member and without a member "xxh3_128".
std::string seal(const nlohmann::json& object);

/// The object without its seal. Throws: IoError naming `file` when the text is not sealed or not as it was sealed.
nlohmann::json unseal(std::string_view text, const std::filesystem::path& file);

}  // namespace espalier::checkpoint
