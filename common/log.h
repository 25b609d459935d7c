// SPDX-License-Identifier: Apache-2.0
// One line per event on standard error: "2026-01-31 12:00:00.000 [rank 03/16] [trainer] message". Standard output is
// for results. Info and debug come from rank 0 only, since every rank would say the same; warnings and errors come from
// every rank.
#pragma once

#include <spdlog/fmt/fmt.h>

#include <string_view>
#include <utility>

namespace espalier {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

/// Says who speaks. Before the first call lines carry no rank and info is shown. Call again to change rank or level.
/// Requires: 0 <= rank < num_ranks.
void init_logging(int rank, int num_ranks, LogLevel level = LogLevel::kInfo);

/// Whether a line of `level` would be written by this rank.
bool log_enabled(LogLevel level);

/// Writes one line (further lines of `text` are written as they are). `subsystem` is a folder or part: "trainer",
/// "checkpoint". Thread: safe.
void log_text(LogLevel level, std::string_view subsystem, std::string_view text);

template <typename... Args>
void log_debug(std::string_view subsystem, fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled(LogLevel::kDebug)) {
    log_text(LogLevel::kDebug, subsystem, fmt::format(format, std::forward<Args>(args)...));
  }
}
template <typename... Args>
void log_info(std::string_view subsystem, fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled(LogLevel::kInfo)) {
    log_text(LogLevel::kInfo, subsystem, fmt::format(format, std::forward<Args>(args)...));
  }
}
template <typename... Args>
void log_warning(std::string_view subsystem, fmt::format_string<Args...> format, Args&&... args) {
  log_text(LogLevel::kWarning, subsystem, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_error(std::string_view subsystem, fmt::format_string<Args...> format, Args&&... args) {
  log_text(LogLevel::kError, subsystem, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace espalier
