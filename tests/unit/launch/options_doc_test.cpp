// SPDX-License-Identifier: Apache-2.0
// docs/options.md is made from the option tables. ESPALIER_UPDATE_DOCS=1 writes it anew.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "common/durable_file.h"
#include "launch/run_config.h"

namespace espalier::launch {
namespace {

TEST(OptionsDoc, EqualsTheOptionTables) {
  RunConfig run;
  OptionTable table;
  describe(table, run);
  const std::filesystem::path file = ESPALIER_SOURCE_DIR "/docs/options.md";
  const auto expected = table.markdown();
  if (std::getenv("ESPALIER_UPDATE_DOCS") != nullptr) {
    std::ofstream(file) << expected;
  }
  EXPECT_EQ(read_file(file), expected) << "run ESPALIER_UPDATE_DOCS=1 build/cpu/tests/unit/launch/launch_test";
}

}  // namespace
}  // namespace espalier::launch
