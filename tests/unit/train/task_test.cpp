// SPDX-License-Identifier: Apache-2.0
// Losses and results of tasks whose targets are tokens, against values worked out by hand.
#include "train/task.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "train/metrics.h"

namespace espalier::train {
namespace {

/// Logits [B, T, V] under which every token of `probabilities` [B, T, V] has that probability.
at::Tensor logits_of(const at::Tensor& probabilities) {
  return probabilities.log();
}

TEST(Task, CountsTheTokensOfASequenceAndLeavesHolesOut) {
  // Two places, two words; the second place of the second row is a hole.
  const auto probabilities = at::tensor({0.5F, 0.5F, 0.25F, 0.75F, 0.9F, 0.1F, 0.5F, 0.5F}).view({2, 2, 2});
  const model::NamedTensors inputs = {{"labels", at::tensor({1L, 1L, 1L, -100L}, at::kLong).view({2, 2})}};
  const auto results = row_results(data::TaskKind::kSeq2Seq, logits_of(probabilities), inputs);
  EXPECT_NEAR(results[0][0].item<double>(), std::log(0.5 * 0.75), 1e-6);
  EXPECT_NEAR(results[1][0].item<double>(), std::log(0.1), 1e-6);
  EXPECT_EQ(results[0][1].item<double>(), 2);
  EXPECT_EQ(results[1][1].item<double>(), 1);
  EXPECT_EQ(results[1][2].item<double>(), 0);
  const auto metrics = compute_metrics(data::TaskKind::kSeq2Seq, results, {});
  EXPECT_NEAR(metrics.at("loss"), -std::log(0.5 * 0.75 * 0.1) / 3, 1e-6);
  EXPECT_NEAR(metrics.at("perplexity"), std::exp(metrics.at("loss")), 1e-9);
  // The loss of the micro-batch is its share of the global batch's mean, here of 4 targets.
  EXPECT_NEAR(task_loss(data::TaskKind::kSeq2Seq, logits_of(probabilities), inputs, 4).item<double>(),
              3 * metrics.at("loss") / 4, 1e-6);
}

TEST(Task, ACausalModelPredictsTheNextLabel) {
  const auto probabilities = at::tensor({0.2F, 0.8F, 0.6F, 0.4F, 0.5F, 0.5F}).view({1, 3, 2});
  const model::NamedTensors inputs = {{"labels", at::tensor({0L, 1L, 0L}, at::kLong).view({1, 3})}};
  const auto results = row_results(data::TaskKind::kCausalLm, logits_of(probabilities), inputs);
  EXPECT_NEAR(results[0][0].item<double>(), std::log(0.8 * 0.6), 1e-6);
  EXPECT_EQ(results[0][1].item<double>(), 2);
  EXPECT_EQ(results[0][2].item<double>(), 2);
}

TEST(Task, RanksChoicesByLikelihoodAndLearnsTheRightOneAlone) {
  // One question: a likely long answer (0.6 each of two tokens) against a short one of 0.5; the long one is right.
  const auto probabilities =
      at::tensor({0.4F, 0.6F, 0.4F, 0.6F, 0.5F, 0.5F, 0.5F, 0.5F, 0.5F, 0.5F, 0.5F, 0.5F}).view({2, 3, 2});
  const model::NamedTensors inputs = {{"labels", at::tensor({-100L, 1L, 1L, -100L, 1L, -100L}, at::kLong).view({2, 3})},
                                      {"choice_offsets", at::tensor({0L, 2L}, at::kLong)},
                                      {"answers", at::tensor({0L}, at::kLong)}};
  const auto results = row_results(data::TaskKind::kMultipleChoice, logits_of(probabilities), inputs);
  EXPECT_EQ(results[0][0].item<double>(), 0) << "0.36 is less likely than 0.5";
  EXPECT_EQ(results[0][1].item<double>(), 1) << "but 0.6 per token is more";
  const auto metrics = compute_metrics(data::TaskKind::kMultipleChoice, results, {});
  EXPECT_EQ(metrics.at("accuracy"), 0);
  EXPECT_EQ(metrics.at("accuracy_norm"), 1);
  EXPECT_NEAR(task_loss(data::TaskKind::kMultipleChoice, logits_of(probabilities), inputs, 2).item<double>(),
              -std::log(0.6), 1e-6);
}

TEST(Task, CountsLabelsOfARowTogether) {
  const auto logits = at::tensor({2.0F, -1.0F, 3.0F, 1.0F}).view({2, 2});
  const auto labels = at::tensor({1.0F, 0.0F, 1.0F, 0.0F}).view({2, 2});
  const auto metrics = compute_metrics(data::TaskKind::kMultiLabel, logits, labels);
  EXPECT_EQ(metrics.at("accuracy"), 0.5);
  EXPECT_NEAR(metrics.at("f1"), 2.0 * 2 / (2 + 3), 1e-12);
  const auto loss = task_loss(data::TaskKind::kMultiLabel, logits, {{"labels", labels}}, 4).item<double>();
  EXPECT_NEAR(loss, metrics.at("loss"), 1e-6);
}

}  // namespace
}  // namespace espalier::train
