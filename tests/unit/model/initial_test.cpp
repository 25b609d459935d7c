// SPDX-License-Identifier: Apache-2.0
#include "model/initial.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "common/random.h"

namespace espalier::model {
namespace {

// The slow way: every element by itself.
double uniform_word(std::string_view name, std::int64_t word) {
  const auto block = philox4x32(derive_key(7, RandomDomain::kInitial, name), static_cast<std::uint64_t>(word / 4));
  return (block[static_cast<std::size_t>(word % 4)] + 0.5) / 4294967296.0;
}

double normal_element(std::string_view name, std::int64_t element) {
  const std::int64_t first = element / 2 * 2;
  const double radius = std::sqrt(-2 * std::log(uniform_word(name, first)));
  const double angle = 2 * std::numbers::pi * uniform_word(name, first + 1);
  return radius * (element % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

TEST(InitialValues, DependOnSeedNameAndElementOnly) {
  const at::Tensor normal = normal_by_name({5, 7}, 0.5, 7, "head.dense.weight").flatten();
  const at::Tensor uniform = uniform_by_name({35}, 0.5, 7, "head.dense.weight");
  for (std::int64_t i = 0; i < 35; ++i) {
    EXPECT_EQ(normal[i].item<float>(), static_cast<float>(0.5 * normal_element("head.dense.weight", i))) << i;
    EXPECT_EQ(uniform[i].item<float>(), static_cast<float>(0.5 * (2 * uniform_word("head.dense.weight", i) - 1))) << i;
  }
}

TEST(InitialValues, BeginTheSameWhateverTheLength) {
  const at::Tensor longer = normal_by_name({2000}, 1, 7, "x");
  for (const std::int64_t length : {0, 1, 2, 3, 4, 5, 1001}) {
    EXPECT_TRUE(at::equal(normal_by_name({length}, 1, 7, "x"), longer.slice(0, 0, length))) << length;
    EXPECT_TRUE(
        at::equal(uniform_by_name({length}, 1, 7, "x"), uniform_by_name({2000}, 1, 7, "x").slice(0, 0, length)));
  }
}

TEST(InitialValues, DoNotDependOnTheNumberOfThreads) {
  const int num_threads = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor alone = normal_by_name({100'003}, 1, 7, "x");
  at::set_num_threads(3);
  const at::Tensor together = normal_by_name({100'003}, 1, 7, "x");
  at::set_num_threads(num_threads);
  EXPECT_TRUE(at::equal(alone, together));
  EXPECT_EQ(together[100'002].item<float>(), static_cast<float>(normal_element("x", 100'002)));
}

TEST(InitialValues, DifferBetweenNamesAndSeeds) {
  const at::Tensor x = normal_by_name({16}, 1, 7, "x");
  EXPECT_TRUE(at::equal(normal_by_name({16}, 1, 7, "x"), x));
  EXPECT_FALSE(normal_by_name({16}, 1, 7, "y").eq(x).any().item<bool>());
  EXPECT_FALSE(normal_by_name({16}, 1, 8, "x").eq(x).any().item<bool>());
}

TEST(InitialValues, HaveTheStatedDistribution) {
  const std::int64_t count = 1 << 20;
  const at::Tensor normal = normal_by_name({count}, 0.02, 7, "x").to(at::kDouble) / 0.02;
  EXPECT_EQ(normal_by_name({2}, 0.02, 7, "x").scalar_type(), at::kFloat);
  // Five standard errors of each moment of the standard normal distribution.
  const double error = 5 / std::sqrt(static_cast<double>(count));
  EXPECT_NEAR(normal.mean().item<double>(), 0, error);
  EXPECT_NEAR(normal.square().mean().item<double>(), 1, error * std::sqrt(2.0));
  EXPECT_NEAR(normal.pow(3).mean().item<double>(), 0, error * std::sqrt(15.0));
  EXPECT_NEAR(normal.pow(4).mean().item<double>(), 3, error * std::sqrt(96.0));
  const at::Tensor neighbours = normal.slice(0, 0, count - 1) * normal.slice(0, 1);
  EXPECT_NEAR(neighbours.mean().item<double>(), 0, error);

  // Of the standard normal within two deviations: variance 1 - 4 phi(2) / (Phi(2) - Phi(-2)).
  const at::Tensor truncated = truncated_normal_by_name({count}, 0.02, 7, "x").to(at::kDouble) / 0.02;
  EXPECT_LE(truncated.abs().max().item<double>(), 2 + 1e-6);
  EXPECT_NEAR(truncated.mean().item<double>(), 0, error);
  EXPECT_NEAR(truncated.square().mean().item<double>(), 0.77374, error * std::sqrt(2.0));

  const at::Tensor uniform = uniform_by_name({count}, 0.25, 7, "x").to(at::kDouble);
  EXPECT_LE(uniform.abs().max().item<double>(), 0.25);
  EXPECT_NEAR(uniform.mean().item<double>(), 0, 0.25 * error / std::sqrt(3.0));
  const at::Tensor counts = at::histc(uniform, 16, -0.25, 0.25);
  const double expected = static_cast<double>(count) / 16;
  EXPECT_LT((counts - expected).abs().max().item<double>(), 5 * std::sqrt(expected));
}

}  // namespace
}  // namespace espalier::model
