// SPDX-License-Identifier: Apache-2.0
// What a subcommand needs of the job it was started in: communicators, threads, logging, stop signals. Scope order is
// teardown order.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "common/byte_ledger.h"
#include "dist/communicator.h"
#include "train/worker.h"

namespace espalier::dist {
class MpiEnvironment;
}

namespace espalier::launch {

/// This process's rank by the launcher's variables, without initialising MPI; 0 alone.
int launcher_rank();

/// One rank of a job. Starts MPI only under a launcher; alone, a single-process communicator that works stands in.
class Session {
 public:
  Session();
  ~Session();

  [[nodiscard]] dist::Communicator& control() { return *control_; }
  [[nodiscard]] ByteLedger& ledger() { return ledger_; }
  /// Makes the device communicator where `device` is not the CPU and there are several ranks. Collective: every rank.
  [[nodiscard]] train::Ranks ranks(const std::string& device);
  /// Sets the threads of this rank: `wanted`, or cores / ranks on the node when 0. Returns what was set.
  int set_threads(int wanted) const;
  /// Rank 0 reads the file, every rank gets its bytes. Collective: every rank.
  [[nodiscard]] std::string read_text(const std::string& path);
  /// Set by SIGTERM, SIGUSR1 and SIGUSR2 from the first call on.
  [[nodiscard]] const std::atomic<bool>& stop_requested();

 private:
  std::unique_ptr<dist::MpiEnvironment> mpi_;
  std::unique_ptr<dist::Communicator> control_;
  std::unique_ptr<dist::Communicator> device_;
  ByteLedger ledger_;
  int node_rank_ = 0;
  int ranks_on_node_ = 1;
};

/// Runs `body` in a session. An exception on any rank is logged once, with rank and cause, and ends all ranks with its
/// exit code.
int run_in_session(const std::function<int(Session&)>& body);

}  // namespace espalier::launch
