// SPDX-License-Identifier: Apache-2.0
// The element types of safetensors files that have a tensor type here, by their stored names.
#pragma once

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace espalier::model {

constexpr std::array<std::pair<std::string_view, at::ScalarType>, 10> kStoredTypes{{
    {"F64", at::kDouble},
    {"F32", at::kFloat},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"I64", at::kLong},
    {"I32", at::kInt},
    {"I16", at::kShort},
    {"I8", at::kChar},
    {"U8", at::kByte},
    {"BOOL", at::kBool},
}};

inline std::optional<at::ScalarType> type_of_stored_name(std::string_view name) {
  const auto found =
      std::find_if(kStoredTypes.begin(), kStoredTypes.end(), [&](const auto& each) { return each.first == name; });
  return found == kStoredTypes.end() ? std::nullopt : std::optional(found->second);
}

/// Empty if the format has no such type.
inline std::string_view stored_name_of_type(at::ScalarType type) {
  const auto found =
      std::find_if(kStoredTypes.begin(), kStoredTypes.end(), [&](const auto& each) { return each.second == type; });
  return found == kStoredTypes.end() ? std::string_view() : found->first;
}

inline std::string stored_type_names() {
  std::string names;
  for (const auto& [name, type] : kStoredTypes) {
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  return names;
}

}  // namespace espalier::model
