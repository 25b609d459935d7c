// SPDX-License-Identifier: Apache-2.0
#include "common/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <string>

#include "common/check.h"

namespace espalier {
namespace {

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

std::shared_ptr<spdlog::logger> make_logger(const std::string& pattern, LogLevel level) {
  auto logger = std::make_shared<spdlog::logger>("espalier", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern(pattern);
  logger->set_level(spdlog_level(level));
  logger->flush_on(spdlog::level::trace);  // a killed rank must have said what it had to say
  return logger;
}

// The one global of Espalier. A shared_ptr swapped atomically: watchdog threads log while main() names the rank.
std::shared_ptr<spdlog::logger>& global_logger() {
  static std::shared_ptr<spdlog::logger> logger = make_logger("%Y-%m-%d %H:%M:%S.%e %v", LogLevel::kInfo);
  return logger;
}

std::string_view severity(LogLevel level) {
  return level == LogLevel::kError ? "error: " : level == LogLevel::kWarning ? "warning: " : "";
}

}  // namespace

void init_logging(int rank, int num_ranks, LogLevel level) {
  ESPALIER_CHECK(rank >= 0 && rank < num_ranks, "rank {} of {}", rank, num_ranks);
  const LogLevel shown = rank == 0 ? level : std::max(level, LogLevel::kWarning);
  const auto pattern = fmt::format("%Y-%m-%d %H:%M:%S.%e [rank {:02}/{:02}] %v", rank, num_ranks);
  std::atomic_store(&global_logger(), make_logger(pattern, shown));
}

bool log_enabled(LogLevel level) {
  return std::atomic_load(&global_logger())->should_log(spdlog_level(level));
}

void log_text(LogLevel level, std::string_view subsystem, std::string_view text) {
  std::atomic_load(&global_logger())->log(spdlog_level(level), "[{}] {}{}", subsystem, severity(level), text);
}

}  // namespace espalier
