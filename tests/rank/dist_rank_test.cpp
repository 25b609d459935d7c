// SPDX-License-Identifier: Apache-2.0
// MpiCommunicator over real processes: the conformance suite with whole messages and with pieces, and what only
// processes show.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/error.h"
#include "dist/agree.h"
#include "dist/gradient_sync.h"
#include "dist/mpi_communicator.h"
#include "dist/solo_communicator.h"
#include "tests/support/communicator_conformance.h"
#include "tests/support/mpi_test_main.h"

namespace espalier::dist {
namespace {

using testing::conformance_cases;
using testing::ConformanceCase;
using ::testing::HasSubstr;
using ::testing::ValuesIn;
using testing::world;

class MpiConformance : public ::testing::TestWithParam<ConformanceCase> {};

TEST_P(MpiConformance, Holds) {
  GetParam().body(world(), at::kCPU);
}

TEST_P(MpiConformance, HoldsWhenMessagesTravelInPieces) {
  const auto group = testing::environment().make_world(/*max_message_bytes=*/24);
  GetParam().body(*group, at::kCPU);
}

INSTANTIATE_TEST_SUITE_P(Cases, MpiConformance, ValuesIn(conformance_cases()),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST(MpiCommunicator, RefusesToSumWhatMpiCannotAndSaysWhatItCan) {
  try {
    world().all_reduce(at::ones({2}, at::kBFloat16)).wait();
    ADD_FAILURE();
  } catch (const CommError& error) {
    EXPECT_THAT(error.what(), HasSubstr("all_reduce of BFloat16 [2] on world rank " + std::to_string(world().rank())));
    EXPECT_THAT(error.what(), HasSubstr("expected float32, float64, int32 or int64"));
  }
}

TEST(MpiCommunicator, RefusesAMessageOfAnotherSize) {
  for (const std::int64_t size : {2, 5}) {
    if (world().rank() == 0) {
      world().send(at::ones({size}), 1, Channel::kForward).wait();
    } else if (world().rank() == 1) {
      EXPECT_THROW(world().recv(at::ones({3}), 0, Channel::kForward).wait(), CommError) << size;
    }
  }
  world().barrier();
}

TEST(MpiCommunicator, AReceiveThatIsPolledCompletes) {
  if (world().rank() == 0) {
    world().send(at::ones({300000}), 1, Channel::kBackward).wait();
  } else if (world().rank() == 1) {
    const at::Tensor found = at::zeros({300000});
    Work work = world().recv(found, 0, Channel::kBackward);
    while (!work.is_done()) {
    }
    work.wait();
    EXPECT_EQ(found.sum().item<float>(), 300000.0F);
  }
  world().barrier();
}

TEST(MpiEnvironment, KnowsThatItWasLaunchedAndIsTheOnlyOne) {
  EXPECT_TRUE(MpiEnvironment::is_launched());
  EXPECT_THROW(MpiEnvironment(nullptr, nullptr), CommError);
}

TEST(GradientSync, ExactSumsOverProcessesHaveTheBitsOfOneProcess) {
  const std::vector<at::Tensor> trained = {at::empty({301}), at::empty({20, 30}), at::empty({5})};
  const auto gradient = [&](int index, int micro_batch) {
    const at::Tensor like = trained[static_cast<std::size_t>(index)];
    return (at::sin(at::arange(like.numel(), at::kFloat) * 1.3 + index + micro_batch * 0.7) *
            std::pow(10.0, micro_batch % 4))
        .view(like.sizes());
  };
  const auto run = [&](const std::string& strategy, Communicator& replicas) {
    const auto sync = make_gradient_sync({"exact", strategy, 1000}, replicas, trained);
    const MicroBatchRange range = plan_micro_batches(7, replicas.num_ranks(), replicas.rank());
    sync->begin(7, range);
    for (int micro_batch = range.first; micro_batch < range.end; ++micro_batch) {
      for (int index = 0; index < 3; ++index) {
        sync->ready(index, micro_batch, gradient(index, micro_batch));
      }
    }
    return sync->finish();
  };
  SoloCommunicator alone;
  const std::vector<at::Tensor> expected = run("naive", alone);
  for (const std::string strategy : {"naive", "bucketed"}) {
    const std::vector<at::Tensor> sums = run(strategy, world());
    for (std::size_t i = 0; i < sums.size(); ++i) {
      EXPECT_TRUE(at::equal(sums[i], expected[i])) << strategy << ", tensor " << i;
    }
  }
}

TEST(RequireAll, ThrowsTheLastRanksErrorOnEveryProcess) {
  const bool has_failed = world().rank() == world().num_ranks() - 1;
  EXPECT_THROW(require_all(world(), has_failed ? "disk full" : "", ExitCode::kStorage, "checkpoint"), IoError);
}

}  // namespace
}  // namespace espalier::dist
