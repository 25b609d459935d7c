// SPDX-License-Identifier: Apache-2.0
#include "launch/commands.h"

#include <algorithm>
#include <cstdio>

#include "launch/session.h"

namespace espalier::launch {

bool wants_help(const Arguments& arguments) {
  return std::any_of(arguments.begin(), arguments.end(),
                     [](const std::string& word) { return word == "--help" || word == "-h"; });
}

void print_once(const std::string& text) {
  if (launcher_rank() == 0) {
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  }
}

}  // namespace espalier::launch
