// SPDX-License-Identifier: Apache-2.0
// The conformance suite over the backends that need no other process, and the life of a Work.
#include "dist/communicator.h"

#include <gtest/gtest.h>

#include "dist/nccl_communicator.h"
#include "dist/solo_communicator.h"
#include "dist/thread_communicator.h"
#include "tests/support/communicator_conformance.h"

namespace espalier::dist {
namespace {

using ::testing::Combine;
using testing::conformance_cases;
using testing::ConformanceCase;
using ::testing::Values;
using ::testing::ValuesIn;

class ThreadConformance : public ::testing::TestWithParam<std::tuple<int, ConformanceCase>> {};

TEST_P(ThreadConformance, Holds) {
  const auto& [num_ranks, conformance_case] = GetParam();
  run_ranks(num_ranks, [&body = conformance_case.body](Communicator& world) { body(world, at::kCPU); });
}

INSTANTIATE_TEST_SUITE_P(Ranks, ThreadConformance, Combine(Values(1, 2, 3, 4), ValuesIn(conformance_cases())),
                         [](const auto& tested) {
                           return std::string(std::get<1>(tested.param).name) + "With" +
                                  std::to_string(std::get<0>(tested.param));
                         });

class SoloConformance : public ::testing::TestWithParam<ConformanceCase> {};

TEST_P(SoloConformance, Holds) {
  SoloCommunicator world;
  GetParam().body(world, at::kCPU);
}

INSTANTIATE_TEST_SUITE_P(Cases, SoloConformance, ValuesIn(conformance_cases()),
                         [](const auto& tested) { return std::string(tested.param.name); });

/// Notes in `log` when it is waited for.
class Noted : public PendingOperation {
 public:
  Noted(std::string& log, char name) : log_(log), name_(name) {}
  void wait() override { log_ += name_; }
  bool is_done() override { return false; }

 private:
  std::string& log_;
  char name_;
};

TEST(Work, IsWaitedForOnceByWaitByAssignmentAndByItsEnd) {
  std::string log;
  {
    Work first(std::make_unique<Noted>(log, 'a'));
    Work moved = std::move(first);
    EXPECT_EQ(log, "");
    moved.wait();
    moved.wait();
    EXPECT_EQ(log, "a");
    moved = Work(std::make_unique<Noted>(log, 'b'));
    moved = Work(std::make_unique<Noted>(log, 'c'));
    EXPECT_EQ(log, "ab");
  }
  EXPECT_EQ(log, "abc");
}

TEST(Work, IsNotWaitedForWhileTheStackUnwinds) {
  std::string log;
  try {
    const Work work(std::make_unique<Noted>(log, 'a'));
    throw CommError("lost");
  } catch (const CommError&) {
  }
  EXPECT_EQ(log, "");
}

TEST(TrafficLabelScope, PutsTheFormerLabelBack) {
  SoloCommunicator world;
  world.set_traffic_label("activation");
  { const TrafficLabelScope scope(world, "gradient"); }
  EXPECT_EQ(world.traffic_label(), "activation");
}

TEST(NcclCommunicator, RefusesADeviceOrABuildWithoutCuda) {
  SoloCommunicator host;
#ifdef ESPALIER_HAS_CUDA
  EXPECT_THROW((void)make_nccl_communicator(host, at::kCPU), CommError);
#else
  try {
    (void)make_nccl_communicator(host, at::Device(at::kCUDA, 0));
    ADD_FAILURE();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("ESPALIER_CUDA=ON"), std::string::npos) << error.what();
  }
#endif
}

TEST(SoloCommunicator, KeepsItsWorldRankThroughSplit) {
  EXPECT_EQ(SoloCommunicator(3).split(0, 0)->world_rank(), 3);
}

TEST(SoloCommunicatorDeathTest, AbortEndsTheProcessWithTheCode) {
  EXPECT_EXIT(SoloCommunicator().abort(5), ::testing::ExitedWithCode(5), "");
}

}  // namespace
}  // namespace espalier::dist
