// SPDX-License-Identifier: Apache-2.0
// What rank tests get from their main(): the communicator of all ranks that mpirun started.
#pragma once

#include "dist/communicator.h"
#include "dist/mpi_communicator.h"

namespace espalier::testing {

/// Every test begins and ends with all ranks at the same place.
dist::Communicator& world();
/// Makes further worlds.
dist::MpiEnvironment& environment();

}  // namespace espalier::testing
