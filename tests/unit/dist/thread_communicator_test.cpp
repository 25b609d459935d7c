// SPDX-License-Identifier: Apache-2.0
#include "dist/thread_communicator.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "common/error.h"

namespace espalier::dist {
namespace {

using ::testing::HasSubstr;

template <typename Expected>
std::string error_of(int num_ranks, const std::function<void(Communicator&)>& body) {
  try {
    run_ranks(num_ranks, body);
  } catch (const Expected& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(RunRanks, RethrowsTheFirstErrorAndWakesTheOthersWithCommError) {
  std::atomic<int> num_woken = 0;
  const std::string text = error_of<NumericError>(3, [&](Communicator& world) {
    if (world.rank() == 1) {
      throw NumericError("the loss is not finite");
    }
    try {
      world.all_reduce(at::ones({2})).wait();
    } catch (const CommError& error) {
      EXPECT_THAT(error.what(), HasSubstr("rank 1 failed: the loss is not finite"));
      ++num_woken;
      throw;
    }
  });
  EXPECT_EQ(text, "the loss is not finite");
  EXPECT_EQ(num_woken, 2);
}

TEST(ThreadCommunicator, NamesBothSidesWhenRanksCallDifferentCollectives) {
  const std::string text = error_of<CommError>(2, [](Communicator& world) {
    if (world.rank() == 0) {
      world.all_reduce(at::ones({2})).wait();
    } else {
      world.broadcast(at::ones({3}), 0).wait();
    }
  });
  EXPECT_THAT(text, HasSubstr("ranks disagree on the next collective"));
  EXPECT_THAT(text, HasSubstr("all_reduce of Float [2]"));
  EXPECT_THAT(text, HasSubstr("broadcast of Float [3] from 0"));
}

TEST(ThreadCommunicator, NoticesThatEveryRankWaits) {
  const std::string text = error_of<CommError>(
      2, [](Communicator& world) { world.recv(at::ones({2}), 1 - world.rank(), Channel::kForward).wait(); });
  EXPECT_THAT(text, HasSubstr("every rank waits"));
  EXPECT_THAT(text, HasSubstr("from rank 0 on channel 0"));
  EXPECT_THAT(text, HasSubstr("from rank 1 on channel 0"));
}

TEST(ThreadCommunicator, NoticesARankThatEndedWithoutComing) {
  const std::string text = error_of<CommError>(2, [](Communicator& world) {
    if (world.rank() == 0) {
      world.barrier();
    }
  });
  EXPECT_THAT(text, HasSubstr("[ended]"));
}

TEST(ThreadCommunicator, ASendEndsOnlyWhenItsRecvWasPosted) {
  const std::string text = error_of<CommError>(2, [](Communicator& world) {
    const int peer = 1 - world.rank();
    world.send(at::ones({2}), peer, Channel::kForward).wait();
    world.recv(at::ones({2}), peer, Channel::kForward).wait();
  });
  EXPECT_THAT(text, HasSubstr("every rank waits"));
}

TEST(ThreadCommunicator, RefusesARecvOfAnotherShape) {
  const std::string text = error_of<CommError>(2, [](Communicator& world) {
    if (world.rank() == 0) {
      world.send(at::ones({2}), 1, Channel::kForward).wait();
    } else {
      world.recv(at::ones({3}), 0, Channel::kForward).wait();
    }
  });
  EXPECT_THAT(text, HasSubstr("a send does not fit its recv"));
}

TEST(ThreadCommunicator, AbortEndsTheOthers) {
  const std::string text = error_of<CommError>(3, [](Communicator& world) {
    if (world.rank() == 2) {
      world.abort(5);
    } else {
      world.barrier();
    }
  });
  EXPECT_THAT(text, HasSubstr("world rank 2 ended the job with exit code 5"));
}

}  // namespace
}  // namespace espalier::dist
