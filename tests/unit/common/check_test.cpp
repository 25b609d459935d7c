// SPDX-License-Identifier: Apache-2.0
#include "common/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <new>

#include "common/error.h"
#include "temporary_folder.h"

namespace espalier {
namespace {

using ::testing::HasSubstr;

TEST(Check, NamesTheExpressionThePlaceAndTheMessage) {
  const int answer = 41;
  const auto text = message_of<InternalError>([&] { ESPALIER_CHECK(answer == 42, "found {} of {}", answer, 42); });
  EXPECT_THAT(text, HasSubstr("common/check_test.cpp:"));
  EXPECT_THAT(text, HasSubstr("answer == 42: found 41 of 42"));
}

TEST(Check, NeedsNoMessageAndEvaluatesOnce) {
  int calls = 0;
  ESPALIER_CHECK(++calls == 1);
  EXPECT_EQ(calls, 1);
  EXPECT_THROW(ESPALIER_CHECK(++calls == 1), InternalError);
  EXPECT_EQ(calls, 2);
}

TEST(Check, PrintsBothValuesThatShouldBeEqual) {
  ESPALIER_CHECK_EQ(2 + 2, 4);
  const auto text = message_of<InternalError>([] { ESPALIER_CHECK_EQ(std::string("left"), std::string("right")); });
  EXPECT_THAT(text, HasSubstr("left against right"));
}

TEST(Error, KnowsTheExitCodeOfItsCause) {
  EXPECT_EQ(ConfigError("").exit_code(), ExitCode::kConfig);
  EXPECT_EQ(NumericError("").exit_code(), ExitCode::kNumeric);
  EXPECT_EQ(CommError("").exit_code(), ExitCode::kComm);
  EXPECT_EQ(IoError("").exit_code(), ExitCode::kStorage);
  EXPECT_EQ(InternalError("").exit_code(), ExitCode::kInternal);
  EXPECT_EQ(exit_code_of(IoError("")), ExitCode::kStorage);
  EXPECT_EQ(exit_code_of(std::bad_alloc()), ExitCode::kInternal);
  // The numbers are a promise to scripts.
  EXPECT_EQ(static_cast<int>(ExitCode::kConfig), 2);
  EXPECT_EQ(static_cast<int>(ExitCode::kNumeric), 3);
  EXPECT_EQ(static_cast<int>(ExitCode::kComm), 4);
  EXPECT_EQ(static_cast<int>(ExitCode::kStorage), 5);
  EXPECT_EQ(static_cast<int>(ExitCode::kStopped), 75);
}

}  // namespace
}  // namespace espalier
