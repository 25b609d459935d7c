// SPDX-License-Identifier: Apache-2.0
// The factorisation of one weight: identities that hold for any matrix, the draws counted, and the synthetic task of
// the paper, small.
#include "peft/rosa_split.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <tuple>

#include "model/initial.h"
#include "rosa_synthetic.h"

namespace espalier::peft {
namespace {

at::Tensor random_matrix(std::int64_t rows, std::int64_t columns, const std::string& name = "w") {
  return model::normal_by_name({rows, columns}, 1, 3, name);
}

double length_of(const at::Tensor& tensor) {
  return tensor.norm().item<double>();
}

/// Singular values above rounding.
std::int64_t rank_of(const at::Tensor& matrix) {
  const auto values = std::get<1>(at::linalg_svd(matrix.to(at::kDouble), false));
  return values.gt(values[0].item<double>() * 1e-5).sum().item<std::int64_t>();
}

TEST(RosaSplit, AddsUpToTheWeightInBothShapesAndTypes) {
  for (const auto& [rows, columns] : {std::pair{20, 12}, std::pair{12, 20}}) {
    const at::Tensor weight = random_matrix(rows, columns);
    for (const auto& [type, stored, limit] : {std::tuple{at::kFloat, at::kFloat, 1e-6},
                                              {at::kDouble, at::kFloat, 1e-6},
                                              {at::kDouble, at::kDouble, 1e-14}}) {
      const RosaParts parts = split_weight(weight.to(type), {2, 3, 7}, "a", stored);
      EXPECT_LT((merged_weight(parts, at::kDouble) - weight).abs().max().item<double>(), limit);
      EXPECT_EQ(parts.rest.scalar_type(), stored);
    }
  }
}

TEST(RosaSplit, LeavesARestThatIsOrthogonalToTheFactors) {
  for (const auto& [rows, columns] : {std::pair{40, 24}, std::pair{24, 40}}) {
    const RosaParts parts = split_weight(random_matrix(rows, columns), {0, 5, 6, 11}, "a");
    EXPECT_LT(length_of(parts.rest.mm(parts.a.t())), 1e-5 * length_of(parts.rest) * length_of(parts.a));
    EXPECT_LT(length_of(parts.b.t().mm(parts.rest)), 1e-5 * length_of(parts.rest) * length_of(parts.b));
    EXPECT_TRUE(at::allclose(parts.b.t().mm(parts.b), at::eye(4), 0, 1e-5));
    EXPECT_EQ(rank_of(parts.rest), 20);
  }
}

TEST(RosaSplit, TakesTheChosenSingularValuesOntoAOrItsRootOntoBoth) {
  const at::Tensor weight = random_matrix(30, 16);
  const at::Tensor values = std::get<1>(at::linalg_svd(weight, false));
  const at::Tensor chosen = at::stack({values[1], values[4], values[9]});
  const RosaParts on_a = split_weight(weight, {1, 4, 9}, "a");
  EXPECT_TRUE(at::allclose(on_a.a.norm(2, 1), chosen, 1e-5, 0));
  const RosaParts both = split_weight(weight, {1, 4, 9}, "both");
  EXPECT_TRUE(at::allclose(both.a.norm(2, 1), chosen.sqrt(), 1e-5, 0));
  EXPECT_TRUE(at::allclose(both.b.norm(2, 0), chosen.sqrt(), 1e-5, 0));
  EXPECT_TRUE(at::allclose(both.b.mm(both.a), on_a.b.mm(on_a.a), 0, 1e-5));
}

TEST(RosaSplit, ChoosesTheSignByTheLargestEntryOfA) {
  for (const char* name : {"u", "v", "w"}) {
    const at::Tensor a = split_weight(random_matrix(14, 9, name), {0, 2, 4, 8}, "a").a;
    EXPECT_TRUE(at::equal(a.amax(1), a.abs().amax(1))) << name;
  }
}

TEST(RosaSampling, CoversTheStartsOfWindowsEvenlyButTheLast) {
  constexpr std::int64_t kSize = 20, kRank = 4, kDraws = 8000;
  std::map<std::int64_t, std::int64_t> starts;
  for (std::int64_t event = 0; event < kDraws; ++event) {
    const auto chosen = sample_subspace("window", kSize, kRank, 1, event, "w");
    ASSERT_EQ(chosen.size(), kRank);
    EXPECT_EQ(chosen.back() - chosen.front(), kRank - 1);
    ++starts[chosen.front()];
  }
  EXPECT_EQ(starts.size(), kSize - kRank);
  EXPECT_EQ(starts.rbegin()->first, kSize - kRank - 1);
  double chi_squared = 0;
  const double expected = static_cast<double>(kDraws) / (kSize - kRank);
  for (const auto& [start, count] : starts) {
    chi_squared += (static_cast<double>(count) - expected) * (static_cast<double>(count) - expected) / expected;
  }
  EXPECT_LT(chi_squared, 37.7);  // 15 degrees of freedom, one draw in a thousand is above
}

TEST(RosaSampling, CoversEveryDirectionEvenlyWhenUniform) {
  constexpr std::int64_t kSize = 20, kRank = 4, kDraws = 8000;
  std::vector<std::int64_t> counts(kSize);
  for (std::int64_t event = 0; event < kDraws; ++event) {
    const auto chosen = sample_subspace("uniform", kSize, kRank, 1, event, "w");
    EXPECT_EQ(std::set(chosen.begin(), chosen.end()).size(), kRank);
    EXPECT_TRUE(std::is_sorted(chosen.begin(), chosen.end()));
    for (const auto index : chosen) ++counts.at(static_cast<std::size_t>(index));
  }
  for (const auto count : counts) {
    EXPECT_NEAR(static_cast<double>(count), kDraws * kRank / kSize, 5 * 36.0);  // five deviations
  }
}

TEST(RosaSampling, TakesTheEndsOfTheSpectrumAndIsKeyedBySeedEventAndName) {
  using Indices = std::vector<std::int64_t>;
  EXPECT_EQ(sample_subspace("top", 9, 3, 1, 5, "w"), (Indices{0, 1, 2}));
  EXPECT_EQ(sample_subspace("bottom", 9, 3, 1, 5, "w"), (Indices{6, 7, 8}));
  const auto base = sample_subspace("uniform", 1000, 8, 1, 5, "w");
  EXPECT_EQ(sample_subspace("uniform", 1000, 8, 1, 5, "w"), base);
  EXPECT_NE(sample_subspace("uniform", 1000, 8, 2, 5, "w"), base);
  EXPECT_NE(sample_subspace("uniform", 1000, 8, 1, 6, "w"), base);
  EXPECT_NE(sample_subspace("uniform", 1000, 8, 1, 5, "v"), base);
}

TEST(RosaSplit, GrowsInRankWithEveryEventWhereOneSubspaceStaysWithinTwiceItsRank) {
  const at::Tensor start = random_matrix(40, 30, "start");
  constexpr std::int64_t kRank = 3, kEvents = 4;
  RosaParts parts{start.clone(), at::zeros({kRank, 30}), at::zeros({40, kRank})};
  for (std::int64_t event = 0; event < kEvents; ++event) {
    resample(parts, {.svd_type = "fp64"}, 1, event, "w");
    const std::string number = std::to_string(event);
    parts.a.add_(random_matrix(kRank, 30, "a" + number), 0.5);
    parts.b.add_(random_matrix(40, kRank, "b" + number), 0.5);
    const auto rank = rank_of(merged_weight(parts, at::kDouble) - start);
    EXPECT_LE(rank, 2 * kRank * (event + 1));
    EXPECT_GT(rank, 2 * kRank * event) << "event " << event;
  }
}

TEST(RosaSynthetic, IsSolvedByDrawnSubspacesAndNotByLowRankWhereItIsSmall) {
  const SyntheticTask task{.in = 64, .out = 16, .teacher_rank = 6, .num_rows = 640, .learning_rate = 2e-2};
  EXPECT_LT(task.train(/*rank=*/2, /*is_lora=*/false, /*epochs=*/120), 1);
  EXPECT_GT(task.train(/*rank=*/2, /*is_lora=*/true, /*epochs=*/120), 30);
}

}  // namespace
}  // namespace espalier::peft
