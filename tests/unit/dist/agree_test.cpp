// SPDX-License-Identifier: Apache-2.0
#include "dist/agree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <new>

#include "common/error.h"
#include "dist/abort.h"
#include "dist/solo_communicator.h"
#include "dist/thread_communicator.h"

namespace espalier::dist {
namespace {

using ::testing::HasSubstr;

TEST(Agree, AnyIsTrueEverywhereWhenOneRankSaysSo) {
  for (int num_ranks = 1; num_ranks <= 4; ++num_ranks) {
    run_ranks(num_ranks, [](Communicator& world) {
      const int last = world.num_ranks() - 1;
      EXPECT_FALSE(agree_any(world, false));
      EXPECT_TRUE(agree_any(world, world.rank() == last));
    });
  }
}

TEST(RequireEqual, ThrowsOnEveryRankAndNamesTheRanksThatDiffer) {
  run_ranks(4, [](Communicator& world) {
    require_equal(world, "seed = 1", "the configuration");
    try {
      require_equal(world, world.rank() == 1 || world.rank() == 3 ? "seed = 2" : "seed = 1", "the configuration");
      ADD_FAILURE() << "rank " << world.rank() << " did not throw";
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr("the configuration: expected the same on all 4 ranks"));
      EXPECT_THAT(error.what(), HasSubstr("on ranks 1, 3;"));
      EXPECT_NE(dynamic_cast<const Agreed*>(&error), nullptr);
    }
  });
}

TEST(RequireAll, ThrowsTheFailingRanksErrorOnEveryRank) {
  run_ranks(3, [](Communicator& world) {
    require_all(world, "", ExitCode::kStorage, "checkpoint");
    try {
      const bool has_failed = world.rank() >= 1;
      require_all(world, has_failed ? "disk full on " + std::to_string(world.rank()) : "", ExitCode::kStorage,
                  "checkpoint");
      ADD_FAILURE() << "rank " << world.rank() << " did not throw";
    } catch (const IoError& error) {
      EXPECT_STREQ(error.what(), "checkpoint failed on rank 1: disk full on 1");
      EXPECT_NE(dynamic_cast<const Agreed*>(&error), nullptr);
    }
  });
}

TEST(RequireAll, KeepsEveryExitCodeAndNeverTakesAFailureForSuccess) {
  SoloCommunicator world;
  for (const auto& [given, kept] : {std::pair(0, 1), {1, 1}, {2, 2}, {3, 3}, {4, 4}, {5, 5}, {75, 1}}) {
    try {
      require_all(world, "lost", static_cast<ExitCode>(given), "it");
      ADD_FAILURE() << given;
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.exit_code()), kept);
    }
  }
}

TEST(Together, ThrowsOnEveryRankWhatOneRankThrewUnderItsOwnCode) {
  run_ranks(3, [](Communicator& world) {
    int runs = 0;
    together(world, "counting", [&] { ++runs; });
    EXPECT_EQ(runs, 1);
    try {
      const auto fail = [&] {
        if (world.rank() == 2) throw ConfigError("it is a file");
      };
      together(world, "writing", fail, ExitCode::kStorage);
      ADD_FAILURE() << "rank " << world.rank() << " did not throw";
    } catch (const ConfigError& error) {
      EXPECT_STREQ(error.what(), "writing failed on rank 2: it is a file");
      EXPECT_NE(dynamic_cast<const Agreed*>(&error), nullptr);
    }
  });
}

TEST(Together, GivesAForeignExceptionTheCodeThatTheCallerNames) {
  SoloCommunicator world;
  const auto fail = [] { throw std::runtime_error(""); };
  EXPECT_THROW(together(world, "writing", fail, ExitCode::kStorage), IoError);
  EXPECT_THROW(together(world, "computing", fail), InternalError);
}

TEST(Together, TakesALackOfMemoryForNoFailureOfTheDisk) {
  SoloCommunicator world;
  const auto fail = [] { throw std::bad_alloc(); };
  EXPECT_THROW(together(world, "writing", fail, ExitCode::kStorage), InternalError);
}

TEST(ThrowAgreed, MarksAnErrorOfItsOwnType) {
  try {
    throw_agreed<NumericError>("not finite");
  } catch (const NumericError& error) {
    EXPECT_STREQ(error.what(), "not finite");
    EXPECT_EQ(error.exit_code(), ExitCode::kNumeric);
    EXPECT_NE(dynamic_cast<const Agreed*>(&error), nullptr);
  }
}

TEST(BroadcastText, CarriesAnyBytesFromAnyRoot) {
  run_ranks(3, [](Communicator& world) {
    for (int root = 0; root < 3; ++root) {
      const std::string mine(static_cast<std::size_t>(world.rank()), '\0');
      EXPECT_EQ(broadcast_text(world, mine + "x", root), std::string(static_cast<std::size_t>(root), '\0') + "x");
    }
    EXPECT_EQ(broadcast_text(world, world.rank() == 0 ? "" : "full"), "");
  });
}

TEST(AbortJobDeathTest, LogsOneLineThatNamesRankCauseAndCode) {
  EXPECT_EXIT(
      {
        SoloCommunicator world(2);
        abort_job(world, IoError("disk full"));
      },
      ::testing::ExitedWithCode(5), "\\[abort\\].*rank 2 of 1 ends the job with exit code 5 \\(storage\\): disk full");
}

}  // namespace
}  // namespace espalier::dist
