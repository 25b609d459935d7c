// SPDX-License-Identifier: Apache-2.0
// NcclCommunicator on CUDA devices. NCCL refuses two ranks on one device unless their host ids differ, so several ranks
// share the devices that there are: slow, over loopback sockets, but the same calls.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "dist/nccl_communicator.h"
#include "tests/support/communicator_conformance.h"
#include "tests/support/mpi_test_main.h"

namespace espalier::dist {
namespace {

using testing::conformance_cases;
using testing::ConformanceCase;
using ::testing::ValuesIn;
using testing::world;

at::Device device_of_rank() {
  return {at::kCUDA, static_cast<at::DeviceIndex>(world().rank() % static_cast<int>(at::getNumGPUs()))};
}

class NcclConformance : public ::testing::TestWithParam<ConformanceCase> {};

TEST_P(NcclConformance, Holds) {
  ::setenv("NCCL_HOSTID", ("rank" + std::to_string(world().rank())).c_str(), /*overwrite=*/1);
  const auto group = make_nccl_communicator(world(), device_of_rank());
  GetParam().body(*group, device_of_rank());
}

INSTANTIATE_TEST_SUITE_P(Cases, NcclConformance, ValuesIn(conformance_cases()),
                         [](const auto& tested) { return std::string(tested.param.name); });

class StagedMpiConformance : public ::testing::TestWithParam<ConformanceCase> {};

TEST_P(StagedMpiConformance, HoldsForCudaTensors) {
  GetParam().body(world(), device_of_rank());
}

INSTANTIATE_TEST_SUITE_P(Cases, StagedMpiConformance, ValuesIn(conformance_cases()),
                         [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace espalier::dist
