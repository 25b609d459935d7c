// SPDX-License-Identifier: Apache-2.0
// The synthetic task at the size of the paper; rosa_split_test has it small.
#include "rosa_synthetic.h"

#include <gtest/gtest.h>

namespace espalier::peft {
namespace {

TEST(RosaSynthetic, IsSolvedByDrawnSubspacesAndNotByLowRank) {
  const SyntheticTask task{.in = 512, .out = 32, .teacher_rank = 24, .num_rows = 5000, .learning_rate = 1e-3};
  EXPECT_LT(task.train(/*rank=*/8, /*is_lora=*/false, /*epochs=*/500), 1);
  EXPECT_GT(task.train(/*rank=*/8, /*is_lora=*/true, /*epochs=*/500), 3e3);
}

}  // namespace
}  // namespace espalier::peft
