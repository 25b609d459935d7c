// SPDX-License-Identifier: Apache-2.0
#include "common/counting_allocator.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace espalier {
namespace {

class CountingAllocatorTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    from_before_ = at::ones({1000}, at::kFloat);
    install_counting_allocator();
    install_counting_allocator();  // a second call changes nothing
  }
  void SetUp() override {
    reset_peak_allocated_bytes();
    start_ = allocated_bytes();
    ASSERT_EQ(start_.current, start_.peak);
  }
  void TearDown() override { EXPECT_EQ(allocated_bytes().current, start_.current); }
  [[nodiscard]] std::int64_t current() const { return allocated_bytes().current - start_.current; }
  [[nodiscard]] std::int64_t peak() const { return allocated_bytes().peak - start_.current; }

  static inline at::Tensor from_before_;
  AllocatedBytes start_;
};

TEST_F(CountingAllocatorTest, CountsTheExactBytesOfTensors) {
  const at::Tensor floats = at::empty({10, 100}, at::kFloat);
  EXPECT_EQ(current(), 4000);
  const at::Tensor bytes = at::empty({3}, at::kByte);
  EXPECT_EQ(current(), 4003);
  const at::Tensor view = floats.view({1000}).narrow(0, 5, 10);
  EXPECT_EQ(current(), 4003);
  EXPECT_EQ(at::empty({0}, at::kFloat).numel(), 0);
  EXPECT_EQ(peak(), 4003);
}

TEST_F(CountingAllocatorTest, ThePeakStaysUntilItIsReset) {
  at::Tensor first = at::empty({1000}, at::kFloat);
  { const at::Tensor second = at::empty({500}, at::kDouble); }
  EXPECT_EQ(current(), 4000);
  EXPECT_EQ(peak(), 8000);
  reset_peak_allocated_bytes();
  EXPECT_EQ(peak(), 4000);
  first.reset();
  EXPECT_EQ(current(), 0);
  EXPECT_EQ(peak(), 4000);
}

TEST_F(CountingAllocatorTest, SeesTheResultsOfOperators) {
  const at::Tensor matrix = at::eye(16, at::kFloat);
  const std::int64_t one = current();
  EXPECT_EQ(one, 16 * 16 * 4);
  const at::Tensor product = at::matmul(matrix, matrix);
  EXPECT_EQ(current(), 2 * one);
  EXPECT_TRUE(at::equal(product, matrix));
  EXPECT_GE(peak(), 2 * one);
}

TEST_F(CountingAllocatorTest, KeepsTheAlignmentOfLibTorch) {
  std::vector<at::Tensor> tensors;
  for (int size = 1; size < 300; size += 7) {
    tensors.push_back(at::empty({size}, at::kByte));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensors.back().data_ptr()) % 64, 0u);
  }
}

TEST_F(CountingAllocatorTest, MappedBytesCountLikeAllocatedOnes) {
  add_external_bytes(1'000'000);
  EXPECT_EQ(current(), 1'000'000);
  EXPECT_EQ(peak(), 1'000'000);
  const at::Tensor tensor = at::empty({100}, at::kFloat);
  EXPECT_EQ(peak(), 1'000'400);
  add_external_bytes(-1'000'000);
  EXPECT_EQ(current(), 400);
  EXPECT_EQ(peak(), 1'000'400);
}

TEST_F(CountingAllocatorTest, TensorsFromBeforeTheInstallationMayGoAfterIt) {
  EXPECT_EQ(from_before_.sum().item<float>(), 1000);
  from_before_.reset();
  EXPECT_EQ(current(), 0);
}

TEST_F(CountingAllocatorTest, LosesNothingBetweenThreads) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int j = 1; j < 500; ++j) {
        const at::Tensor tensor = at::empty({j}, at::kFloat);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(current(), 0);
  EXPECT_GE(peak(), 499 * 4);
  EXPECT_LE(peak(), 4 * 499 * 4);
}

}  // namespace
}  // namespace espalier
