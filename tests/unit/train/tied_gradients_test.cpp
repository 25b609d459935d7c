// SPDX-License-Identifier: Apache-2.0
#include "train/tied_gradients.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dist/thread_communicator.h"

namespace espalier::train {
namespace {

constexpr int kStages = 4;
constexpr std::int64_t kElements = 33;

/// Of each stage: "table" has three places on two stages and one more on the last, "bias" two, the others one.
const std::vector<std::vector<std::string>> kNames = {
    {"table", "a", "table"}, {"table", "b", "bias"}, {"c"}, {"bias", "table"}};

/// Drawn so that the order of a sum shows in its last bits.
at::Tensor gradient_at(int stage, std::size_t place) {
  const auto seed = static_cast<double>(10 * stage + static_cast<int>(place) + 1);
  return at::sin(at::arange(kElements, at::kFloat) * seed) * seed;
}

at::Tensor sum_in_chain_order(const std::string& name) {
  at::Tensor sum;
  for (int stage = 0; stage < kStages; ++stage) {
    const auto& names = kNames[static_cast<std::size_t>(stage)];
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (names[i] == name) sum = sum.defined() ? sum + gradient_at(stage, i) : gradient_at(stage, i);
    }
  }
  return sum;
}

/// What one rank has after add(), and the bytes that it sent for it.
struct Added {
  std::vector<at::Tensor> gradients;
  std::int64_t sent_bytes = 0;
};

Added add_on(dist::Communicator& world, int num_stages, const std::vector<std::string>& names,
             std::vector<at::Tensor> gradients) {
  ByteLedger ledger;
  world.set_ledger(&ledger);
  auto mesh = dist::make_mesh(world, nullptr, num_stages, 0);
  TiedGradients tied(mesh, names);
  tied.add(gradients);
  return {std::move(gradients), ledger.traffic("send", "tied_gradient")};
}

TEST(TiedGradients, AreAddedInChainOrderAndReachEveryPlace) {
  dist::run_ranks(kStages * 2, [&](dist::Communicator& world) {
    const int stage = world.rank() % kStages;
    const auto& names = kNames[static_cast<std::size_t>(stage)];
    std::vector<at::Tensor> gradients;
    for (std::size_t i = 0; i < names.size(); ++i) gradients.push_back(gradient_at(stage, i));
    const auto added = add_on(world, kStages, names, gradients);
    for (std::size_t i = 0; i < names.size(); ++i) {
      EXPECT_TRUE(at::equal(added.gradients[i], sum_in_chain_order(names[i]))) << names[i] << " of stage " << stage;
    }
    // Forward 0 -> 1 -> 3 for the table and 1 -> 3 for the bias; back from 3 to each of the others.
    const std::int64_t tensors_sent[] = {1, 2, 0, 3};
    EXPECT_EQ(added.sent_bytes, tensors_sent[stage] * kElements * 4) << "stage " << stage;
  });
}

TEST(TiedGradients, HaveTheSameBitsOnOneStage) {
  std::vector<std::string> names;
  std::vector<at::Tensor> gradients;
  for (int stage = 0; stage < kStages; ++stage) {
    for (std::size_t i = 0; i < kNames[static_cast<std::size_t>(stage)].size(); ++i) {
      names.push_back(kNames[static_cast<std::size_t>(stage)][i]);
      gradients.push_back(gradient_at(stage, i));
    }
  }
  dist::run_ranks(1, [&](dist::Communicator& world) {
    const auto added = add_on(world, 1, names, gradients);
    for (std::size_t i = 0; i < names.size(); ++i) {
      EXPECT_TRUE(at::equal(added.gradients[i], sum_in_chain_order(names[i]))) << names[i];
    }
    EXPECT_EQ(added.sent_bytes, 0);
  });
}

}  // namespace
}  // namespace espalier::train
