// SPDX-License-Identifier: Apache-2.0
#include "dist/abort.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <thread>

#include "common/error.h"
#include "common/log.h"
#include "dist/agree.h"

namespace espalier::dist {

namespace {

// Rank 0 threw the same error and needs milliseconds; a rank that outlives this wait ends the job itself.
constexpr std::chrono::seconds kRankZeroSpeaks{3};

std::string_view kind_of(ExitCode exit_code) {
  switch (exit_code) {
    case ExitCode::kConfig:
      return "configuration or input";
    case ExitCode::kNumeric:
      return "numeric failure";
    case ExitCode::kComm:
      return "communication";
    case ExitCode::kStorage:
      return "storage";
    case ExitCode::kOk:
    case ExitCode::kStopped:
    case ExitCode::kInternal:
      break;
  }
  return "internal error, please report it";
}

}  // namespace

void abort_job(Communicator& control, const std::exception& error) {
  const ExitCode cause = exit_code_of(error);
  const int exit_code = static_cast<int>(cause);
  if (dynamic_cast<const Agreed*>(&error) != nullptr && control.rank() != 0) {
    std::this_thread::sleep_for(kRankZeroSpeaks);
  }
  log_error("abort", "rank {} of {} ends the job with exit code {} ({}): {}", control.world_rank(), control.num_ranks(),
            exit_code, kind_of(cause), error.what());
  control.abort(exit_code);
  // Only a backend without processes comes back.
  std::fflush(nullptr);
  std::_Exit(exit_code);
}

}  // namespace espalier::dist
