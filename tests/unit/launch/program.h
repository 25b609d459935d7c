// SPDX-License-Identifier: Apache-2.0
// Runs the program as a user does.
#pragma once

#include <string>
#include <vector>

namespace espalier::test {

struct ProgramResult {
  int exit_code = -1;
  std::string output;  ///< standard output and standard error
};

/// `espalier <arguments>`; words are passed as they are, no shell reads them.
ProgramResult run_program(const std::vector<std::string>& arguments);

}  // namespace espalier::test
