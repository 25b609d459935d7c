// SPDX-License-Identifier: Apache-2.0
// main() of rank tests. Every rank runs every test; rank 0 reports, failures are printed by the rank that sees them,
// and the exit code is non-zero everywhere when any rank failed. After each test the ranks meet; a rank that failed and
// waits there in vain (the others hang in the collective that it left) ends the job.
//   --ranks=N       fails unless mpirun started N ranks
//   --needs-device  exits 77, which ctest counts as skipped, where no CUDA device is found
#include "tests/support/mpi_test_main.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>

#include "common/log.h"

namespace espalier::testing {

namespace {

constexpr std::chrono::seconds kPatience{20};
constexpr int kSkipped = 77;

dist::Communicator* shared_world = nullptr;
dist::MpiEnvironment* shared_environment = nullptr;

/// Prints failures only, each with the rank.
class FailurePrinter : public ::testing::EmptyTestEventListener {
 public:
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (result.failed()) {
      const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
      std::cerr << "[rank " << world().rank() << "] " << (test != nullptr ? test->test_suite_name() : "") << "."
                << (test != nullptr ? test->name() : "") << " "
                << (result.file_name() != nullptr ? result.file_name() : "") << ":" << result.line_number() << ": "
                << result.message() << std::endl;
    }
  }
};

class Meeting : public ::testing::EmptyTestEventListener {
 public:
  explicit Meeting(dist::Communicator& own) : own_(own) {}

  void OnTestEnd(const ::testing::TestInfo& test) override {
    const bool has_failed = test.result()->Failed();
    const at::Tensor token = at::zeros({1});
    dist::Work work = own_.all_reduce(token);
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (has_failed && !work.is_done()) {
      if (std::chrono::steady_clock::now() > deadline) {
        std::cerr << "[rank " << own_.rank() << "] failed in " << test.name() << "; the other ranks do not come"
                  << std::endl;
        own_.abort(EXIT_FAILURE);
      }
    }
    work.wait();
  }

 private:
  dist::Communicator& own_;
};

void use(dist::MpiEnvironment& environment, dist::Communicator& world) {
  shared_environment = &environment;
  shared_world = &world;
}

int run_tests(int argc, char** argv, dist::Communicator& own) {
  int expected_ranks = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--ranks=", 0) == 0) {
      expected_ranks = std::stoi(argument.substr(8));
    } else if (argument == "--needs-device") {
      if (!at::hasCUDA()) {
        std::cerr << "skipped: no CUDA device" << std::endl;
        return kSkipped;
      }
    } else {
      std::cerr << "unknown argument " << argument << std::endl;
      return EXIT_FAILURE;
    }
  }
  if (expected_ranks != own.num_ranks()) {
    std::cerr << "expected --ranks=" << own.num_ranks() << ", as many as mpirun started, found " << expected_ranks
              << std::endl;
    return EXIT_FAILURE;
  }
  ::testing::TestEventListeners& listeners = ::testing::UnitTest::GetInstance()->listeners();
  if (own.rank() != 0) {
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailurePrinter);
  }
  listeners.Append(new Meeting(own));
  const at::Tensor num_failed = at::full({1}, RUN_ALL_TESTS() == 0 ? 0 : 1, at::kLong);
  own.all_reduce(num_failed).wait();
  if (num_failed.item<std::int64_t>() > 0 && own.rank() == 0) {
    std::cerr << num_failed.item<std::int64_t>() << " of " << own.num_ranks() << " ranks failed" << std::endl;
  }
  return num_failed.item<std::int64_t>() > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

}  // namespace

dist::Communicator& world() {
  return *shared_world;
}
dist::MpiEnvironment& environment() {
  return *shared_environment;
}

}  // namespace espalier::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  espalier::dist::MpiEnvironment environment(&argc, &argv);
  const auto world = environment.make_world();
  const auto own = environment.make_world();
  espalier::init_logging(world->rank(), world->num_ranks());
  espalier::testing::use(environment, *world);
  return espalier::testing::run_tests(argc, argv, *own);
}
