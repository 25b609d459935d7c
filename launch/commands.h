// SPDX-License-Identifier: Apache-2.0
// The subcommands, one file each. A command takes the words after its name and returns the exit code.
#pragma once

#include <string>
#include <vector>

namespace espalier::launch {

using Arguments = std::vector<std::string>;

int run_train(const Arguments& arguments);
int run_evaluate(const Arguments& arguments);
int run_predict(const Arguments& arguments);
int run_generate(const Arguments& arguments);
int run_export(const Arguments& arguments);
int run_inspect(const Arguments& arguments);
int run_info(const Arguments& arguments);

/// True when `arguments` holds --help or -h.
bool wants_help(const Arguments& arguments);
/// Prints to standard output on the first rank only.
void print_once(const std::string& text);

}  // namespace espalier::launch
