// SPDX-License-Identifier: Apache-2.0
// Processes as ranks, over MPI. Host tensors go directly through nonblocking calls; CUDA tensors are staged through
// pinned host memory. MPI makes progress only inside its own calls: poll Work::is_done() now and then where an
// operation shall overlap.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "dist/communicator.h"

namespace espalier::dist {

/// Owns MPI: initialises it (MPI_THREAD_FUNNELED or higher) and finalises it. One per process, in main(); every
/// communicator ends before it. While the stack unwinds MPI is not finalised, since the other ranks would not come:
/// mpirun ends them. Thread: the main thread, which also makes every call of the communicators.
class MpiEnvironment {
 public:
  /// Collective: every rank of the job. Throws: CommError when MPI runs already or grants too little.
  MpiEnvironment(int* argc, char*** argv);
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;
  ~MpiEnvironment();

  /// True when mpirun, srun or another launcher started this process as one of a job, so that MPI should be
  /// initialised.
  [[nodiscard]] static bool is_launched();

  /// A communicator of all ranks with message traffic of its own. Longer messages travel in pieces of
  /// `max_message_bytes`, since MPI counts in int. CUDA tensors: a call waits until the current stream has made the
  /// tensor; Work::wait queues the copy back on it. all_reduce sums float32, float64, int32 and int64. Collective:
  /// every rank.  Requires: 8 <= max_message_bytes < 2^31, equal on all ranks.
  [[nodiscard]] std::unique_ptr<Communicator> make_world(std::int64_t max_message_bytes = std::int64_t{1} << 30);
};

/// "Open MPI v4.1.4, ..." up to the first comma. Local; needs no initialised MPI.
std::string mpi_library_version();

}  // namespace espalier::dist
