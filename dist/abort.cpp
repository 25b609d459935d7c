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

std::string_view kind_of(int exit_code) {
  switch (static_cast<ExitCode>(exit_code)) {
    case ExitCode::kConfig:
      return "configuration or input";
    case ExitCode::kNumeric:
      return "numeric failure";
    case ExitCode::kComm:
      return "communication";
    case ExitCode::kStorage:
      return "storage";
    case ExitCode::kStopped:
      return "stopped on request";
    case ExitCode::kOk:
    case ExitCode::kInternal:
      break;
  }
  return "internal error, please report it";
}

}  // namespace

int exit_code_of(const std::exception& error) {
  const auto* own = dynamic_cast<const Error*>(&error);
  return static_cast<int>(own != nullptr ? own->exit_code() : ExitCode::kInternal);
}

void abort_job(Communicator& control, const std::exception& error) {
  const int exit_code = exit_code_of(error);
  if (dynamic_cast<const Agreed*>(&error) != nullptr && control.rank() != 0) {
    std::this_thread::sleep_for(kRankZeroSpeaks);
  }
  log_error("abort", "rank {} of {} ends the job with exit code {} ({}): {}", control.world_rank(), control.num_ranks(),
            exit_code, kind_of(exit_code), error.what());
  control.abort(exit_code);
  // Only a backend without processes comes back.
  std::fflush(nullptr);
  std::_Exit(exit_code);
}

}  // namespace espalier::dist
