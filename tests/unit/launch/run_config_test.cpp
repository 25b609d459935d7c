// SPDX-License-Identifier: Apache-2.0
#include "launch/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/error.h"

namespace espalier::launch {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(RunConfig, FlagsOverrideTheFileThatConfigNames) {
  RunConfig run;
  OptionTable table;
  describe(table, run);
  read_arguments(table, table, {"--config", "a.ini", "--optimizer.learning_rate=0.5"},
                 [](const std::string&) { return "[optimizer]\nlearning_rate = 0.25\n[train]\nepochs = 9\n"; });
  EXPECT_EQ(run.optimizer.learning_rate, 0.5);
  EXPECT_EQ(run.train.epochs, 9);
  EXPECT_THROW(read_arguments(table, table, {"--config"}, nullptr), ConfigError);
}

TEST(RunConfig, TheLayoutIsNoNumericOption) {
  RunConfig run;
  OptionTable table;
  describe(table, run);
  const auto before = numeric_options(table);
  table.read_flags({"--parallel.stages=3", "--run.folder=elsewhere", "--checkpoint.every_steps=5",
                    "--train.stop_at_step=4", "--gradient_sync.bucket_bytes=100"});
  EXPECT_EQ(numeric_options(table), before);
  table.read_flags({"--train.seed=8"});
  EXPECT_NE(numeric_options(table), before);
}

TEST(RunConfig, AnAdapterCarriesItsMethodOptionsOnly) {
  RunConfig run;
  OptionTable table;
  describe(table, run);
  table.read_flags({"--peft.lst.reduction=4"});
  const auto text = adapter_options(table);
  EXPECT_THAT(text, HasSubstr("reduction = 4"));
  EXPECT_THAT(text, HasSubstr("pooling"));
  EXPECT_THAT(text, Not(HasSubstr("learning_rate")));
  RunConfig other;
  OptionTable reader;
  describe(reader, other);
  reader.read_text(text, "adapter.json");
  EXPECT_EQ(other.peft.lst.reduction, 4);
}

}  // namespace
}  // namespace espalier::launch
