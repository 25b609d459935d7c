// SPDX-License-Identifier: Apache-2.0
#include "model/dropout.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/error.h"
#include "model/dropout_kernel.h"

namespace espalier::model {
namespace {

constexpr std::uint64_t kKey = 0x9E3779B97F4A7C15ULL;
const at::ScalarType kTypes[] = {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble};

class ThreadCount {
 public:
  explicit ThreadCount(int count) : before_(at::get_num_threads()) { at::set_num_threads(count); }
  ~ThreadCount() { at::set_num_threads(before_); }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_;
};

// x * mask * scale, each step rounded as the contract says: float arithmetic for the narrow types
at::Tensor slow_dropout(const at::Tensor& x, double probability, std::uint64_t key) {
  const auto wide = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto scale = static_cast<float>(1.0 / (1.0 - probability));
  const at::Tensor mask = dropout_mask(x.numel(), probability, key).view(x.sizes());
  const at::Tensor scaled = x.contiguous().to(wide) * at::scalar_tensor(scale, x.options().dtype(wide));
  return at::where(mask == 1, scaled, at::zeros_like(scaled)).to(x.scalar_type());
}

TEST(Dropout, AppliesTheMaskOfTheOracleToEveryTypeAndSize) {
  for (const at::ScalarType type : kTypes) {
    for (const std::int64_t numel : {1, 63, 64, 255, 256, 257, 1000, 40000}) {
      const at::Tensor x = at::randn({numel}).to(type);
      EXPECT_TRUE(at::equal(dropout(x, 0.3, kKey), slow_dropout(x, 0.3, kKey))) << type << " " << numel;
    }
  }
}

TEST(Dropout, DrawsTheSameMaskForOneAndTwoThreadsAndForAnyShape) {
  const at::Tensor x = at::randn({50, 7, 300});
  const ThreadCount one(1);
  const at::Tensor expected = dropout(x, 0.1, kKey);
  const ThreadCount two(2);
  EXPECT_TRUE(at::equal(dropout(x, 0.1, kKey), expected));
  EXPECT_TRUE(at::equal(dropout(x.view({-1}), 0.1, kKey), expected.view({-1})));
  EXPECT_TRUE(at::equal(dropout(x.view({300, 350}), 0.1, kKey), expected.view({300, 350})));
}

TEST(Dropout, CountsElementsInLogicalOrderWhateverTheStrides) {
  const at::Tensor x = at::randn({40, 30});
  const at::Tensor transposed = x.t().contiguous().t();
  ASSERT_FALSE(transposed.is_contiguous());
  EXPECT_TRUE(at::equal(dropout(transposed, 0.5, kKey), dropout(x, 0.5, kKey)));
}

TEST(Dropout, ContinuesTheMaskFromItsFirstElement) {
  const at::Tensor x = at::randn({2000});
  const at::Tensor whole = dropout(x, 0.4, kKey);
  for (const std::int64_t first : {1, 64, 255, 256, 700}) {
    const at::Tensor rest = x.slice(0, first);
    EXPECT_TRUE(at::equal(dropout(rest, 0.4, kKey, first), whole.slice(0, first))) << first;
  }
}

TEST(Dropout, DropsAtTheAskedRateEverywhereAndDifferentlyForEveryKey) {
  constexpr std::int64_t kNumel = 1 << 18;
  for (const double probability : {0.01, 0.1, 0.5, 0.9}) {
    const at::Tensor dropped = 1 - dropout_mask(kNumel, probability, kKey).to(at::kDouble);
    const double deviation = std::sqrt(probability * (1 - probability) / kNumel);
    EXPECT_NEAR(dropped.mean().item<double>(), probability, 5 * deviation);
    // per place within a block: no word and no lane is biased
    const at::Tensor by_place = dropped.view({-1, kDropoutBlock}).mean(0);
    EXPECT_LT((by_place - probability).abs().max().item<double>(), 6 * deviation * std::sqrt(double{kDropoutBlock}));
  }
  const at::Tensor one = dropout_mask(kNumel, 0.5, kKey), other = dropout_mask(kNumel, 0.5, kKey + 1);
  EXPECT_NEAR((one == other).to(at::kDouble).mean().item<double>(), 0.5, 5 * 0.5 / std::sqrt(double{kNumel}));
}

TEST(Dropout, KeepsExactlyTheWordsFromTheThresholdOn) {
  // 2^-32 drops only the word 0; just below 1 keeps only the highest words
  EXPECT_EQ(make_dropout_rule(0x1p-32, 0).threshold, 1U);
  EXPECT_EQ(make_dropout_rule(0.5, 0).threshold, 0x80000000U);
  EXPECT_EQ(make_dropout_rule(1 - 0x1p-33, 0).threshold, 0xFFFFFFFFU);
}

TEST(Dropout, VectorisedMasksEqualTheOracleFarAlongTheCounter) {
  // the counter crosses 2^32 between these blocks
  constexpr std::int64_t kFirstBlock = (std::int64_t{1} << 26) - 1;
  const DropoutRule rule = make_dropout_rule(0.5, kKey);
  std::vector<std::uint32_t> keep(2 * kDropoutBlock);
  draw_dropout_blocks(rule, kFirstBlock, 2, keep.data());
  for (std::int64_t e = 0; e < 2 * kDropoutBlock; ++e) {
    const std::int64_t block = kFirstBlock + e / kDropoutBlock;
    const auto counter = static_cast<std::uint64_t>(block * kDropoutCounters + e % kDropoutCounters);
    const std::uint32_t word = draw_dropout_words(kKey, counter).word[e % kDropoutBlock / kDropoutCounters];
    ASSERT_EQ(keep[static_cast<std::size_t>(e)], word >= rule.threshold ? ~std::uint32_t{0} : 0) << e;
  }
}

TEST(Dropout, PassesTheGradientThroughTheSameMask) {
  for (const at::ScalarType type : kTypes) {
    const at::Tensor x = at::randn({33, 41}).to(type).requires_grad_();
    const at::Tensor grad = at::randn({33, 41}).to(type);
    const at::Tensor y = dropout(x, 0.25, kKey);
    const at::Tensor grad_x = torch::autograd::grad({y}, {x}, {grad}).at(0);
    EXPECT_TRUE(at::equal(grad_x, slow_dropout(grad, 0.25, kKey))) << type;
  }
}

TEST(Dropout, GradientEqualsFiniteDifferencesInDouble) {
  const at::Tensor x = at::randn({12}, at::kDouble).requires_grad_(), residual = at::randn({12}, at::kDouble);
  const at::Tensor weight = at::randn({12}, at::kDouble);
  const auto loss = [&](const at::Tensor& at_x) {
    return (dropout_add(at_x, residual, 0.5, kKey).pow(2) * weight).sum();
  };
  const at::Tensor gradient = torch::autograd::grad({loss(x)}, {x}).at(0);
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    at::Tensor step = at::zeros({12}, at::kDouble);
    step[i] = 1e-6;
    const at::Tensor point = x.detach();
    const double slope = ((loss(point + step) - loss(point - step)) / 2e-6).item<double>();
    EXPECT_NEAR(gradient[i].item<double>(), slope, 1e-6) << i;
  }
}

TEST(Dropout, HasAGradientOfItsGradient) {
  const at::Tensor x = at::randn({300}, at::kDouble).requires_grad_(),
                   grad = at::randn({300}, at::kDouble).requires_grad_();
  const at::Tensor first =
      torch::autograd::grad({dropout(x, 0.5, kKey)}, {x}, {grad}, /*retain_graph=*/true, /*create_graph=*/true).at(0);
  const at::Tensor ones = at::ones_like(first);
  EXPECT_TRUE(at::equal(torch::autograd::grad({first}, {grad}, {ones}).at(0), slow_dropout(ones, 0.5, kKey)));
}

TEST(Dropout, AddsTheResidualBitByBitLikeTwoSteps) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const at::Tensor x = at::randn({7, 333}).to(type), residual = at::randn({7, 333}).to(type);
    EXPECT_TRUE(at::equal(dropout_add(x, residual, 0.2, kKey), residual + slow_dropout(x, 0.2, kKey))) << type;
  }
  // the narrow types round once instead of twice
  const at::Tensor x = at::randn({500}).to(at::kBFloat16), residual = at::randn({500}).to(at::kBFloat16);
  const at::Tensor expected = residual.to(at::kFloat) + slow_dropout(x.to(at::kFloat), 0.2, kKey);
  EXPECT_TRUE(at::equal(dropout_add(x, residual, 0.2, kKey), expected.to(at::kBFloat16)));
}

TEST(Dropout, LeavesTheGradientOfTheResidualUntouched) {
  const at::Tensor x = at::randn({10, 20}).requires_grad_(), residual = at::randn({10, 20}).requires_grad_();
  const at::Tensor grad = at::randn({10, 20});
  const auto grads = torch::autograd::grad({dropout_add(x, residual, 0.2, kKey)}, {x, residual}, {grad});
  EXPECT_TRUE(at::equal(grads.at(0), slow_dropout(grad, 0.2, kKey)));
  EXPECT_TRUE(at::equal(grads.at(1), grad));
}

TEST(Dropout, KeepsNeitherInputNorMaskForTheBackward) {
  at::Tensor x = at::randn({1000});
  const at::Tensor leaf = at::ones({1}).requires_grad_();
  at::Tensor product = x * leaf;
  const c10::weak_intrusive_ptr<c10::TensorImpl> watched(product.getIntrusivePtr());
  const at::Tensor y = dropout(product, 0.1, kKey);
  product.reset();
  EXPECT_TRUE(watched.expired());
  EXPECT_TRUE(y.requires_grad());
}

TEST(Dropout, ReturnsTheInputItselfAtProbabilityZero) {
  const at::Tensor x = at::randn({5}), residual = at::randn({5});
  EXPECT_TRUE(dropout(x, 0.0, kKey).is_same(x));
  EXPECT_TRUE(at::equal(dropout_add(x, residual, 0.0, kKey), x + residual));
  EXPECT_EQ(dropout(at::empty({0, 3}), 0.5, kKey).numel(), 0);
}

TEST(Dropout, DropsWhatIsNotFiniteAndKeepsItVisibleElsewhere) {
  const at::Tensor x = at::full({1000}, std::numeric_limits<float>::infinity());
  const at::Tensor y = dropout(x, 0.5, kKey), mask = dropout_mask(1000, 0.5, kKey);
  EXPECT_TRUE(at::equal(y.isinf(), mask == 1));
  EXPECT_TRUE(at::equal(y == 0, mask == 0));
}

TEST(Dropout, RefusesAProbabilityOutsideItsRange) {
  const at::Tensor x = at::randn({5});
  EXPECT_THROW(dropout(x, 1.0, kKey), InternalError);
  EXPECT_THROW(dropout(x, -0.1, kKey), InternalError);
  EXPECT_THROW(dropout_add(x, at::randn({4}), 0.1, kKey), InternalError);
}

}  // namespace
}  // namespace espalier::model
