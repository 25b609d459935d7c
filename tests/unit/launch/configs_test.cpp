// SPDX-License-Identifier: Apache-2.0
// Every file in configs/ is read with the real option table.
#include <gtest/gtest.h>

#include <filesystem>

#include "common/durable_file.h"
#include "launch/objectives.h"
#include "launch/run_config.h"

namespace espalier::launch {
namespace {

TEST(Configs, EveryFileIsValidAndComplete) {
  int num_files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(ESPALIER_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".ini") {
      continue;
    }
    ++num_files;
    RunConfig run;
    OptionTable table;
    describe(table, run);
    EXPECT_NO_THROW(table.read_text(read_file(entry.path()), entry.path())) << entry.path();
    EXPECT_NO_THROW(table.check_required()) << entry.path();
    EXPECT_NO_THROW(plan_objectives(table)) << entry.path();
  }
  EXPECT_GE(num_files, 4);
}

}  // namespace
}  // namespace espalier::launch
