// SPDX-License-Identifier: Apache-2.0
// Threads as ranks, for tests: the logic of many ranks in one process, without mpirun. It is stricter than the other
// backends, so that mistakes show here: a send ends only when its recv was posted, ranks that call different
// collectives are told so, and when every rank waits, all of them fail with a list of what each waits for, where
// processes would hang.
#pragma once

#include <functional>

#include "dist/communicator.h"

namespace espalier::dist {

/// Runs `body` on `num_ranks` threads, each with its communicator of the whole group, and joins them.
/// Stream: CUDA tensors are copied on the current stream of either thread; all ranks must use the same one.
/// Throws: the first exception that any rank threw; it wakes all other ranks with CommError, so no rank waits for a
/// lost one.
void run_ranks(int num_ranks, const std::function<void(Communicator& world)>& body);

}  // namespace espalier::dist
