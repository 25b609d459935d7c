// SPDX-License-Identifier: Apache-2.0
#include "common/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/error.h"

namespace espalier {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

/// Logs one line of each level and gives what came out on standard error.
std::string lines_of(int rank, int num_ranks, LogLevel level) {
  ::testing::internal::CaptureStderr();
  init_logging(rank, num_ranks, level);
  log_debug("trainer", "a {}", "debug");
  log_info("trainer", "an {}", "info");
  log_warning("trainer", "a {}", "warning");
  log_error("trainer", "an {}", "error");
  std::string lines = ::testing::internal::GetCapturedStderr();
  init_logging(0, 1);
  return lines;
}

TEST(Log, WritesTimeRankSubsystemAndMessage) {
  ::testing::internal::CaptureStderr();
  init_logging(0, 16);
  log_info("trainer", "step {} of {}", 3, 10);
  const std::string line = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(line, MatchesRegex("[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3} "
                                 "\\[rank 00/16\\] \\[trainer\\] step 3 of 10\n"));
}

TEST(Log, RankZeroSpeaksForAllAndEveryRankWarns) {
  const std::string first = lines_of(0, 4, LogLevel::kInfo);
  EXPECT_THAT(first, HasSubstr("[rank 00/04] [trainer] an info\n"));
  EXPECT_THAT(first, Not(HasSubstr("a debug")));
  const std::string third = lines_of(3, 4, LogLevel::kDebug);
  EXPECT_THAT(third, Not(HasSubstr("an info")));
  EXPECT_THAT(third, HasSubstr("[rank 03/04] [trainer] warning: a warning\n"));
  EXPECT_THAT(third, HasSubstr("[rank 03/04] [trainer] error: an error\n"));
}

TEST(Log, TheLevelSetsWhatIsShown) {
  EXPECT_THAT(lines_of(0, 1, LogLevel::kDebug), HasSubstr("a debug"));
  const std::string errors = lines_of(2, 4, LogLevel::kError);
  EXPECT_THAT(errors, Not(HasSubstr("a warning")));
  EXPECT_THAT(errors, HasSubstr("an error"));
}

TEST(Log, TakesBracesInPlainText) {
  ::testing::internal::CaptureStderr();
  log_text(LogLevel::kInfo, "data", "{\"not\": \"a format {}\"}");
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("[data] {\"not\": \"a format {}\"}\n"));
}

TEST(Log, RefusesARankOutsideTheJob) {
  EXPECT_THROW(init_logging(4, 4), InternalError);
}

}  // namespace
}  // namespace espalier
