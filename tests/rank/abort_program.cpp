// SPDX-License-Identifier: Apache-2.0
// A job that dies, for abort_test: abort_program FAILING_RANK CAUSE STAMP_FILE. The failing rank throws, all others are
// blocked in a collective. CAUSE: config, numeric, comm, storage, foreign, or agreed (every rank throws together).
// Before it throws, the rank writes STAMP_FILE, from whose time the test counts.
#include <ATen/ATen.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>

#include "common/error.h"
#include "common/log.h"
#include "dist/abort.h"
#include "dist/agree.h"
#include "dist/mpi_communicator.h"

namespace {

void fail(const std::string& cause) {
  if (cause == "config") {
    throw espalier::ConfigError("the cause is config");
  }
  if (cause == "numeric") {
    throw espalier::NumericError("the cause is numeric");
  }
  if (cause == "comm") {
    throw espalier::CommError("the cause is comm");
  }
  if (cause == "storage") {
    throw espalier::IoError("the cause is storage");
  }
  throw std::runtime_error("the cause is foreign");
}

void run(espalier::dist::Communicator& world, int failing_rank, const std::string& cause,
         const std::string& stamp_file) {
  const bool fails = world.rank() == failing_rank;
  if (fails) {
    // Time for the others to block in the collective.
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    std::ofstream(stamp_file) << "failed now";
  }
  if (cause == "agreed") {
    espalier::dist::require_all(world, fails ? "the cause is agreed" : "", espalier::ExitCode::kStorage, "checkpoint");
  } else if (fails) {
    fail(cause);
  }
  world.all_reduce(at::ones({1 << 20})).wait();
  std::cout << "survived" << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: abort_program FAILING_RANK CAUSE STAMP_FILE" << std::endl;
    return 2;
  }
  espalier::dist::MpiEnvironment environment(&argc, &argv);
  const auto world = environment.make_world();
  espalier::init_logging(world->rank(), world->num_ranks());
  try {
    run(*world, std::stoi(argv[1]), argv[2], argv[3]);
  } catch (const std::exception& error) {
    espalier::dist::abort_job(*world, error);
  }
  return 0;
}
