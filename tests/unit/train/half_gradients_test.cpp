// SPDX-License-Identifier: Apache-2.0
// Gradients in fp16 of a mean over so many targets that the gradient of a logit is less than fp16's least number.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <mutex>

#include "dist/thread_communicator.h"
#include "model/loss.h"
#include "tiny_dataset.h"
#include "tiny_model.h"
#include "train/task.h"
#include "training_run.h"

namespace espalier::test {
namespace {

constexpr std::int64_t kNumTargets = std::int64_t{1} << 24;

class HalfGradients : public testing::Test {
 protected:
  HalfGradients() {
    model_.path = write_tiny_model({.family = "gpt2", .num_blocks = 2, .dropout = 0}, folder_ / "model");
    write_tiny_dataset({.task = "causal_lm"}, folder_ / "data.h5");
  }
  /// Of one micro-batch, by name.
  std::map<std::string, at::Tensor> gradients(const std::string& compute_type, double scale, int num_stages = 1) {
    at::set_num_threads(1);
    std::map<std::string, at::Tensor> gathered;
    std::mutex mutex;
    dist::run_ranks(num_stages, [&](dist::Communicator& world) {
      const auto dataset = data::Dataset::open(folder_ / "data.h5");
      train::ObjectiveConfig objective{.peft = {.method = "lora"}, .data = dataset.info()};
      objective.peft.lora.rank = 2;
      objective.head = train::head_request(objective.data, "auto");
      auto model = model_;
      model.compute_type = compute_type;
      train::ParallelConfig parallel;
      parallel.stages = num_stages;
      train::Worker worker({model, parallel, /*seed=*/7, {objective}}, train::Ranks{world});
      const auto batch = train::make_micro_batch(
          worker.backbone(), 0, dataset.split("train").collate({0, 1, 2}, /*max_length=*/32, 8, /*fixed_length=*/0));
      const auto loss = [](std::size_t /*objective*/, const at::Tensor& logits, const model::NamedTensors& inputs) {
        return model::token_loss(logits, inputs.at("labels"), /*is_shifted=*/true, kNumTargets);
      };
      worker.executor().train_step(dist::ScheduleKind::k1F1B, {batch}, RandomKey{}, loss,
                                   [&](int /*micro_batch*/, int index, const at::Tensor& gradient) {
                                     const std::lock_guard lock(mutex);
                                     EXPECT_EQ(gradient.scalar_type(), at::kFloat);
                                     gathered[worker.method().trained()[static_cast<std::size_t>(index)].name] =
                                         gradient.clone();
                                   },
                                   /*is_training=*/false, {scale});
    });
    return gathered;
  }
  /// The norm of what differs, over that of `expected`.
  static double error_of(const std::map<std::string, at::Tensor>& found,
                         const std::map<std::string, at::Tensor>& expected) {
    double difference = 0, size = 0;
    EXPECT_EQ(found.size(), expected.size());
    for (const auto& [name, gradient] : expected) {
      const at::Tensor truth = gradient.to(at::kDouble);
      difference += (found.at(name).to(at::kDouble) - truth).square().sum().item<double>();
      size += truth.square().sum().item<double>();
    }
    EXPECT_GT(size, 0);
    return std::sqrt(difference / size);
  }
  static void expect_equal(const std::map<std::string, at::Tensor>& found,
                           const std::map<std::string, at::Tensor>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (const auto& [name, gradient] : expected) EXPECT_TRUE(at::equal(found.at(name), gradient)) << name;
  }

  TemporaryFolder folder_;
  train::ModelConfig model_;
};

TEST_F(HalfGradients, SurviveUnderTheScaleAndNotWithoutIt) {
  const double scale = train::gradient_scale(at::kHalf, 1.0 / static_cast<double>(kNumTargets));
  ASSERT_EQ(scale, kNumTargets);
  const auto exact = gradients("fp32", 1);
  EXPECT_GT(error_of(gradients("fp16", 1), exact), 0.5);
  const auto scaled = gradients("fp16", scale);
  EXPECT_LT(error_of(scaled, exact), 0.05);
  expect_equal(gradients("fp16", scale, /*num_stages=*/2), scaled);
  expect_equal(gradients("fp32", scale), exact);  // a power of two rounds nothing
}

TEST(GradientScale, IsThePowerOfTwoBelowTheTargetsInFp16Alone) {
  for (const std::int64_t num_targets : {1, 2, 3, 1000, 1023, 1024, 1025, 4'194'303}) {
    const double largest = 1.0 / static_cast<double>(num_targets);
    const double scale = train::gradient_scale(at::kHalf, largest);
    EXPECT_LE(scale, static_cast<double>(num_targets));
    EXPECT_GT(2 * scale, static_cast<double>(num_targets));
    EXPECT_EQ(std::exp2(std::round(std::log2(scale))), scale);
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kDouble}) {
      EXPECT_EQ(train::gradient_scale(type, largest), 1);
    }
  }
  // A large weight of the teacher's, and a batch without any target.
  EXPECT_EQ(train::gradient_scale(at::kHalf, 40), 1);
  EXPECT_EQ(train::gradient_scale(at::kHalf, std::numeric_limits<double>::infinity()), 1);
}

}  // namespace
}  // namespace espalier::test
