// SPDX-License-Identifier: Apache-2.0
// What a run says of the memory of its frozen weights.
#include <gtest/gtest.h>

#include "tiny_dataset.h"
#include "tiny_model.h"
#include "training_run.h"

namespace espalier::test {
namespace {

TEST(FrozenBytes, LeaveOutWhatRosaKeepsAlsoWhereOneMatrixJoinsThreeWeights) {
  const TemporaryFolder folder;
  RunRequest request;
  request.model = write_tiny_model({.family = "gpt2", .num_blocks = 2}, folder / "model");
  request.dataset = write_tiny_dataset({.task = "causal_lm"}, folder / "data.h5");
  request.steps = 1;
  request.peft.method = "rosa";
  request.peft.rosa.rank = 4;
  const auto summary_of = [&](const std::string& name, std::vector<std::string> targets) {
    request.peft.rosa.targets = std::move(targets);
    request.folder = folder / name;
    return run_training(request, {1, 1}).summary;
  };
  const auto apart = summary_of("apart", {"attention.query", "attention.key", "attention.value"});
  const auto joined = summary_of("joined", {"attention.query_key_value"});
  EXPECT_EQ(joined.at("kept_bytes"), apart.at("kept_bytes"));
  EXPECT_EQ(joined.at("frozen_bytes"), apart.at("frozen_bytes"));
}

}  // namespace
}  // namespace espalier::test
