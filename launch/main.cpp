// SPDX-License-Identifier: Apache-2.0
// espalier <command>: finds the subcommand and maps what it throws to an exit code (docs/exit_codes.md).
#include <malloc.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cstdio>
#include <exception>

#include "common/counting_allocator.h"
#include "common/error.h"
#include "launch/commands.h"

namespace espalier::launch {
namespace {

struct Command {
  const char* name;
  const char* summary;
  ExitCode (*run)(const Arguments&);
};

constexpr Command kCommands[] = {
    {"train", "fine-tune; alone or under mpirun", run_train},
    {"evaluate", "metrics of a split with a run's or an adapter's weights", run_evaluate},
    {"predict", "logits of a split or of plain arrays, on any layout", run_predict},
    {"generate", "texts for the prompts of a split or of plain arrays, on any layout", run_generate},
    {"export", "write a run's trained tensors as an adapter folder", run_export},
    {"inspect", "say what a model folder, dataset, run, checkpoint or adapter holds", run_inspect},
    {"info", "versions, devices and build", run_info},
};

std::string usage() {
  std::string text = "usage: espalier <command> [options]\n\n";
  for (const auto& command : kCommands) {
    text += fmt::format("  {:<10} {}\n", command.name, command.summary);
  }
  return text + "\nEach command has --help. Several ranks: mpirun -np N espalier <command> ...\n";
}

ExitCode run(const Arguments& words) {
  if (words.empty() || words.front() == "--help" || words.front() == "-h") {
    print_once(usage());
    return words.empty() ? ExitCode::kConfig : ExitCode::kOk;
  }
  const auto* command = std::find_if(std::begin(kCommands), std::end(kCommands),
                                     [&](const Command& known) { return words.front() == known.name; });
  if (command == std::end(kCommands)) {
    throw ConfigError(fmt::format("espalier: expected a command, found '{}'\n{}", words.front(), usage()));
  }
  return command->run(Arguments(words.begin() + 1, words.end()));
}

}  // namespace
}  // namespace espalier::launch

int main(int argc, char** argv) {
  // Tensors come and go by the megabyte every step; giving their pages back each time costs 4 to 5 % of a step.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 64 << 20);
  espalier::install_counting_allocator();
  try {
    return static_cast<int>(espalier::launch::run(espalier::launch::Arguments(argv + 1, argv + argc)));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(espalier::exit_code_of(error));
  }
}
