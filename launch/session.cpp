// SPDX-License-Identifier: Apache-2.0
#include "launch/session.h"

#include <spdlog/fmt/fmt.h>

#include <csignal>
#include <cstdlib>

#include "common/error.h"
#include "common/log.h"
#include "dist/abort.h"
#include "dist/agree.h"
#include "dist/mpi_communicator.h"
#include "dist/nccl_communicator.h"
#include "dist/solo_communicator.h"
#include "launch/run_config.h"
#include "train/device.h"

namespace espalier::launch {
namespace {

std::atomic<bool> stop_flag{false};

extern "C" void request_stop(int /*signal*/) {
  stop_flag.store(true);
}

int number_from_environment(std::initializer_list<const char*> names, int otherwise) {
  for (const char* name : names) {
    if (const char* text = std::getenv(name); text != nullptr && *text != '\0') {
      return std::atoi(text);
    }
  }
  return otherwise;
}

}  // namespace

int launcher_rank() {
  return number_from_environment({"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}, 0);
}

Session::Session() {
  if (dist::MpiEnvironment::is_launched()) {
    mpi_ = std::make_unique<dist::MpiEnvironment>(nullptr, nullptr);
    control_ = mpi_->make_world();
  } else if (const int tasks = number_from_environment({"SLURM_STEP_NUM_TASKS"}, 1); tasks > 1) {
    // Each of them would train alone, into one run folder.
    throw ConfigError(fmt::format(
        "srun: expected a launcher that tells {} processes of each other, found none of the variables of PMIx or PMI; "
        "start with srun --mpi=pmix, or with mpirun",
        tasks));
  } else {
    control_ = std::make_unique<dist::SoloCommunicator>();
  }
  control_->set_ledger(&ledger_);
  node_rank_ =
      number_from_environment({"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"}, control_->rank());
  ranks_on_node_ = number_from_environment({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"}, control_->num_ranks());
  init_logging(control_->rank(), control_->num_ranks());
}

Session::~Session() = default;

train::Ranks Session::ranks(const std::string& device) {
  if (device != "cpu" && control_->num_ranks() > 1 && !device_) {
    device_ = dist::make_nccl_communicator(*control_, train::device_from(device, node_rank_));
    device_->set_ledger(&ledger_);
  }
  return {*control_, device_.get(), node_rank_, ranks_on_node_};
}

int Session::set_threads(int wanted) const {
  const int threads = wanted > 0 ? wanted : train::default_threads(train::count_cores(), ranks_on_node_);
  train::configure_threads(threads);
  return threads;
}

std::string Session::read_text(const std::string& path) {
  std::string text;
  dist::together(*control_, "reading " + path, [&] { text = control_->rank() == 0 ? read_named_file(path) : ""; });
  return dist::broadcast_text(*control_, text);
}

const std::atomic<bool>& Session::stop_requested() {
  for (const int signal : {SIGTERM, SIGUSR1, SIGUSR2}) {
    std::signal(signal, request_stop);
  }
  return stop_flag;
}

ExitCode run_in_session(const std::function<ExitCode(Session&)>& body) {
  std::unique_ptr<Session> session;
  try {
    session = std::make_unique<Session>();
    return body(*session);
  } catch (const std::exception& error) {
    if (session && session->control().num_ranks() > 1) {
      dist::abort_job(session->control(), error);
    }
    log_error("espalier", "{}", error.what());
    return exit_code_of(error);
  }
}

}  // namespace espalier::launch
