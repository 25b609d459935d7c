// SPDX-License-Identifier: Apache-2.0
// The subcommands, one file each. A command takes the words after its name and returns the exit code
// (docs/exit_codes.md).
#pragma once

#include <string>
#include <vector>

#include "common/error.h"

namespace espalier::launch {

using Arguments = std::vector<std::string>;

/// Alone or under mpirun. What fails ends as in run_in_session(); train returns kStopped when it stopped on request.
/// Collective: every rank of the job, with the same words. Throws: ConfigError, IoError from train --print-config,
/// which runs without ranks.
ExitCode run_train(const Arguments& arguments);
ExitCode run_evaluate(const Arguments& arguments);
ExitCode run_predict(const Arguments& arguments);
ExitCode run_generate(const Arguments& arguments);
/// Without ranks; under mpirun the first rank alone exports, and prints. Collective: no.
/// Throws: ConfigError, IoError, InternalError, whose codes main() returns.
ExitCode run_export(const Arguments& arguments);
ExitCode run_inspect(const Arguments& arguments);
ExitCode run_info(const Arguments& arguments);

/// True when `arguments` holds --help or -h.
bool wants_help(const Arguments& arguments);
/// Prints to standard output on the first rank (launcher_rank()) only. Collective: no.
void print_once(const std::string& text);

}  // namespace espalier::launch
