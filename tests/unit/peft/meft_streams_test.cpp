// SPDX-License-Identifier: Apache-2.0
#include "peft/meft_streams.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "common/error.h"

namespace espalier::peft {
namespace {

constexpr std::int64_t kBits = 20;
constexpr double kUnit = 1 << kBits;

/// Values of both signs, more than one task of the kernel, and a last group that is not whole.
at::Tensor wave(double size, double pace) {
  return (at::arange(3 * 50 * 77, at::kDouble) * pace).sin().mul(size).view({3, 50, 77});
}

class FixedPointStreams : public testing::TestWithParam<std::int64_t> {
 protected:
  [[nodiscard]] StreamScale scale() const { return {.value = 1.0 / static_cast<double>(k_), .divisor = k_}; }

  const std::int64_t k_ = GetParam();
  const at::Tensor x_ = (wave(900, 0.7) * kUnit).to(at::kInt);
  const at::Tensor branch_ = wave(3, 1.3).to(at::kFloat);
};

TEST_P(FixedPointStreams, AddTheRoundedBranchToTheFlooredQuotient) {
  const auto joined =
      make_fixed_point(kBits, at::kFloat)->join(x_, scale(), branch_, /*keeps_remainder=*/true, "block");
  const at::Tensor quotient = (x_.to(at::kDouble) / static_cast<double>(k_)).floor();
  EXPECT_EQ(joined.sum.scalar_type(), at::kInt);
  EXPECT_TRUE(at::equal(joined.sum.to(at::kDouble), quotient + (branch_.to(at::kDouble) * kUnit).round()));
}

TEST_P(FixedPointStreams, ComeBackBitByBit) {
  for (const bool has_kernel : {true, false}) {
    const auto arithmetic = make_fixed_point(kBits, at::kFloat, has_kernel);
    const auto joined = arithmetic->join(x_, scale(), branch_, /*keeps_remainder=*/true, "block");
    EXPECT_TRUE(at::equal(arithmetic->separate(joined.sum, scale(), branch_, joined.remainder), x_)) << has_kernel;
  }
}

TEST_P(FixedPointStreams, AreTheSameWithPlainOperations) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const at::Tensor branch = branch_.to(type);
    const auto fast = make_fixed_point(kBits, type)->join(x_, scale(), branch, /*keeps_remainder=*/true, "block");
    const auto plain = make_fixed_point(kBits, type, /*has_kernel=*/false)
                           ->join(x_, scale(), branch, /*keeps_remainder=*/true, "block");
    EXPECT_TRUE(at::equal(fast.sum, plain.sum));
    ASSERT_EQ(fast.remainder.defined(), plain.remainder.defined());
    if (fast.remainder.defined()) {
      EXPECT_TRUE(at::equal(fast.remainder, plain.remainder));
    }
  }
}

TEST_P(FixedPointStreams, KeepThePlannedBitsOfARemainder) {
  const std::map<std::int64_t, int> bits = {{1, 0}, {2, 1}, {8, 3}, {10, 4}, {128, 7}};
  ASSERT_EQ(remainder_bits(k_), bits.at(k_));
  const auto arithmetic = make_fixed_point(kBits, at::kFloat);
  const auto joined = arithmetic->join(x_, scale(), branch_, /*keeps_remainder=*/true, "block");
  ASSERT_EQ(joined.remainder.defined(), k_ > 1);
  if (k_ > 1) {
    EXPECT_EQ(joined.remainder.nbytes(), (x_.numel() + 7) / 8 * bits.at(k_));
  }
  EXPECT_FALSE(arithmetic->join(x_, scale(), branch_, /*keeps_remainder=*/false, "block").remainder.defined());
}

INSTANTIATE_TEST_SUITE_P(Divisors, FixedPointStreams, testing::Values(1, 2, 8, 10, 128));

TEST(FixedPointStreams, ReportWhatTheyCannotHold) {
  for (const bool has_kernel : {true, false}) {
    const auto arithmetic = make_fixed_point(kBits, at::kFloat, has_kernel);
    at::Tensor x = at::zeros({2, 3, 4});
    EXPECT_TRUE(at::equal(arithmetic->read(arithmetic->enter(x + 2047.5, "encoder.3")), x + 2047.5));
    for (const double bad :
         {2048.0, -2049.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
      x.view({-1})[17] = bad;
      try {
        static_cast<void>(arithmetic->enter(x, "encoder.3"));
        ADD_FAILURE() << bad << " was wrapped";
      } catch (const NumericError& error) {
        EXPECT_THAT(error.what(), testing::HasSubstr("encoder.3: expected streams within +-2048"));
        EXPECT_THAT(error.what(), testing::HasSubstr("peft.meft.fraction_bits"));
      }
    }
    // The branch fits, the quotient fits, their sum does not.
    const at::Tensor large = arithmetic->enter(at::full({8}, 1500.0), "encoder.3");
    EXPECT_THROW(static_cast<void>(arithmetic->join(large, {}, at::full({8}, 1500.0), false, "encoder.3")),
                 NumericError);
  }
}

TEST(FloatingPointStreams, ComeBackUpToRounding) {
  const auto arithmetic = make_floating_point(at::kDouble);
  const at::Tensor x = wave(3, 0.7), branch = wave(2, 1.3);
  const StreamScale scale{.value = 0.1};
  const auto joined = arithmetic->join(x, scale, branch, /*keeps_remainder=*/true, "block");
  EXPECT_TRUE(at::allclose(joined.sum, 0.1 * x + branch, 0, 1e-15));
  EXPECT_TRUE(at::allclose(arithmetic->separate(joined.sum, scale, branch, {}), x, 0, 1e-14));
  EXPECT_FALSE(joined.remainder.defined());
}

}  // namespace
}  // namespace espalier::peft
