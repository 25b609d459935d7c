// SPDX-License-Identifier: Apache-2.0
#include "launch/objectives.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/error.h"
#include "temporary_folder.h"

namespace espalier::launch {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class PlannedObjectives : public testing::Test {
 protected:
  std::vector<ObjectiveOptions> plan(const std::string& text) {
    RunConfig run;
    OptionTable table;
    describe(table, run);
    table.read_text("[optimizer]\nlearning_rate = 0.5\n" + text, "run.ini");
    return plan_objectives(table);
  }
  std::string error_of(const std::string& text) {
    return message_of<ConfigError>([&] { plan(text); });
  }
};

TEST_F(PlannedObjectives, AreOneWithoutANameUnlessSaid) {
  const auto objectives = plan("[peft]\nmethod = lora\n");
  ASSERT_EQ(objectives.size(), 1);
  EXPECT_EQ(objectives.front().name, "");
  EXPECT_EQ(objectives.front().run.peft.method, "lora");
}

TEST_F(PlannedObjectives, TakeTheRunsOptionsWhereTheySayNothing) {
  const auto objectives = plan(
      "[objective.a]\npeft.lst.reduction = 4\noptimizer.learning_rate = 0.25\n[objective.b]\npeft.method = last\n");
  ASSERT_EQ(names_of(objectives), "a, b");
  EXPECT_EQ(objectives[0].run.peft.lst.reduction, 4);
  EXPECT_EQ(objectives[0].run.optimizer.learning_rate, 0.25);
  EXPECT_EQ(objectives[1].run.peft.method, "last");
  EXPECT_EQ(objectives[1].run.optimizer.learning_rate, 0.5);
  EXPECT_THAT(objectives[0].adapter_options, AllOf(HasSubstr("reduction = 4"), testing::Not(HasSubstr("objective"))));
  EXPECT_EQ(find_objective(objectives, "b").name, "b");
  EXPECT_THAT(message_of<ConfigError>([&] { (void)find_objective(objectives, "c"); }), HasSubstr("a, b"));
}

TEST_F(PlannedObjectives, OfASweepAreEveryCombination) {
  const auto objectives =
      plan("[sweep]\noptimizer.learning_rate = 1e-3 | 3e-3\npeft.lst.layers = 0,1 | 2 |\npeft.seed = 4\n");
  EXPECT_EQ(names_of(objectives),
            "learning_rate-1e-3_layers-0_1_seed-4, learning_rate-1e-3_layers-2_seed-4, "
            "learning_rate-1e-3_layers-_seed-4, learning_rate-3e-3_layers-0_1_seed-4, "
            "learning_rate-3e-3_layers-2_seed-4, learning_rate-3e-3_layers-_seed-4");
  EXPECT_EQ(objectives[3].run.peft.lst.layers, (std::vector<std::int64_t>{0, 1}));
  EXPECT_EQ(objectives[4].run.optimizer.learning_rate, 3e-3);
  EXPECT_EQ(objectives[5].run.peft.seed, 4);
}

TEST_F(PlannedObjectives, AreRefusedWithFileAndLine) {
  EXPECT_THAT(error_of("[objective.a]\npeft.lst.reduction = none\n"), HasSubstr("run.ini:4: peft.lst.reduction"));
  EXPECT_THAT(error_of("[sweep]\npeft.last.rank = 4 | x\n"), HasSubstr("run.ini:4: peft.last.rank"));
  EXPECT_THAT(error_of("[sweep]\npeft.last.rank = 4 | 4\n"), HasSubstr("rank-4 twice"));
  EXPECT_THAT(error_of("[sweep]\npeft.last.rank = 4\n[objective.a]\npeft.last.rank = 2\n"), HasSubstr("either"));
  EXPECT_THAT(error_of("[objective.a]\ntrain.epochs = 4\n"), HasSubstr("train.epochs"));
}

}  // namespace
}  // namespace espalier::launch
