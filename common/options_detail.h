// SPDX-License-Identifier: Apache-2.0
// What the three sources of the option table share; not for others.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace espalier::detail {

/// `text` without white space at its ends.
std::string_view trimmed(std::string_view text);
/// true, yes, on, 1 and their opposites.
std::optional<bool> parse_bool(std::string_view text);
/// How an INI file must write `value` so that it is read back as it is: in quotes where needed.
std::string ini_value(const std::string& value);

}  // namespace espalier::detail
