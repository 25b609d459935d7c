// SPDX-License-Identifier: Apache-2.0
// What a subcommand needs of the job it was started in: communicators, threads, logging, stop signals. Scope order is
// teardown order.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "common/byte_ledger.h"
#include "common/error.h"
#include "dist/communicator.h"
#include "train/worker.h"

namespace espalier::dist {
class MpiEnvironment;
}

namespace espalier::launch {

/// This process's rank by the launcher's variables, without initialising MPI; 0 alone.
int launcher_rank();

/// One rank of a job. Starts MPI only under a launcher; alone, a single-process communicator that works stands in.
/// Thread: the main thread.
class Session {
 public:
  /// Starts MPI and logging. Collective: every rank of the job.
  /// Throws: CommError when MPI cannot be started; ConfigError for several processes of srun without PMIx or PMI.
  Session();
  /// Ends MPI. Collective: every rank of the job, but for a stack that unwinds.
  ~Session();

  [[nodiscard]] dist::Communicator& control() { return *control_; }
  [[nodiscard]] ByteLedger& ledger() { return ledger_; }
  /// Makes the device communicator where `device` is not the CPU and there are several ranks. Collective: every rank.
  /// Owns: the session, the communicators. Throws: ConfigError where there is no such device; CommError from NCCL.
  [[nodiscard]] train::Ranks ranks(const std::string& device);
  /// Sets the threads of this rank: `wanted`, or when 0 the cores that it may use / the ranks on its node. Returns what
  /// was set.
  int set_threads(int wanted) const;
  /// Rank 0 reads the file, every rank gets its bytes. Collective: every rank.
  /// Throws: ConfigError on every rank where it cannot be read.
  [[nodiscard]] std::string read_text(const std::string& path);
  /// Set by SIGTERM, SIGUSR1 and SIGUSR2 from the first call on; one flag for the process.
  [[nodiscard]] const std::atomic<bool>& stop_requested();

 private:
  std::unique_ptr<dist::MpiEnvironment> mpi_;
  std::unique_ptr<dist::Communicator> control_;
  std::unique_ptr<dist::Communicator> device_;
  ByteLedger ledger_;
  int node_rank_ = 0;
  int ranks_on_node_ = 1;
};

/// Runs `body` in a session and returns its exit code. An exception is logged, with rank and cause: alone, or where the
/// session itself fails, its exit code is returned; one of several ranks ends all of them with it (dist/abort.h) and
/// does not return. Collective: every rank of the job, as far as `body` is. Throws: nothing that is a std::exception.
ExitCode run_in_session(const std::function<ExitCode(Session&)>& body);

}  // namespace espalier::launch
