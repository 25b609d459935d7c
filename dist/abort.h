// SPDX-License-Identifier: Apache-2.0
// Death is collective: a rank that cannot go on says why in one line and ends all ranks at once, before any of them
// waits for it.
#pragma once

#include <exception>

#include "dist/communicator.h"

namespace espalier::dist {

/// Logs one line that names the rank, the kind of failure and its text, then ends every rank of the job with the
/// error's exit code. An error that all ranks throw together (dist/agree.h) is logged and acted on by rank 0 alone. To
/// be called from the handler in main(), inside the scope of the communicators: their destructors are not run.
/// Collective: no; any rank at any time.
[[noreturn]] void abort_job(Communicator& control, const std::exception& error);

}  // namespace espalier::dist
