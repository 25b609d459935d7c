// SPDX-License-Identifier: Apache-2.0
// Checks of Espalier's own promises. A failed one is a defect (InternalError, exit code 1); what a user can get wrong
// is a ConfigError with a sentence instead. Macros, because the text of the expression and its place are the message.
#pragma once

#include <spdlog/fmt/fmt.h>

#include <string>
#include <utility>

namespace espalier::detail {

/// Throws: InternalError "dist/mesh.cpp:12: expected <expression>: <message>".
[[noreturn]] void check_failed(const char* expression, const char* file, int line, const std::string& message);

inline std::string check_message() {
  return {};
}
template <typename... Args>
std::string check_message(fmt::format_string<Args...> format, Args&&... args) {
  return fmt::format(format, std::forward<Args>(args)...);
}

}  // namespace espalier::detail

/// ESPALIER_CHECK(condition) or ESPALIER_CHECK(condition, "format {}", value...). Throws: InternalError.
#define ESPALIER_CHECK(condition, ...)                                                  \
  do {                                                                                  \
    if (!(condition)) {                                                                 \
      ::espalier::detail::check_failed(#condition, __FILE__, __LINE__,                  \
                                       ::espalier::detail::check_message(__VA_ARGS__)); \
    }                                                                                   \
  } while (false)

/// Both values must be equal, and are printed if not (fmt must know their types). Throws: InternalError.
#define ESPALIER_CHECK_EQ(left, right)                                                               \
  do {                                                                                               \
    const auto& espalier_left = (left);                                                              \
    const auto& espalier_right = (right);                                                            \
    if (!(espalier_left == espalier_right)) {                                                        \
      ::espalier::detail::check_failed(#left " == " #right, __FILE__, __LINE__,                      \
                                       fmt::format("{} against {}", espalier_left, espalier_right)); \
    }                                                                                                \
  } while (false)
