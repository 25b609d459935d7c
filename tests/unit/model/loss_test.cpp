// SPDX-License-Identifier: Apache-2.0
#include "model/loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace espalier::model {
namespace {

at::Tensor some_logits(std::int64_t rows, std::int64_t labels) {
  return at::sin(at::arange(rows * labels, at::kFloat) * 1.7).view({rows, labels}) * 3;
}

TEST(ClassificationLoss, IsMinusTheLogOfTheSoftmaxOverTheGlobalRows) {
  const auto logits = some_logits(4, 3);
  const auto labels = at::tensor({2, 0, 1, 2}, at::kLong);
  double expected = 0;
  for (std::int64_t row = 0; row < 4; ++row) {
    double sum = 0;
    for (std::int64_t label = 0; label < 3; ++label) sum += std::exp(logits[row][label].item<double>());
    expected += std::log(sum) - logits[row][labels[row].item<std::int64_t>()].item<double>();
  }
  EXPECT_NEAR(classification_loss(logits, labels, 8).item<double>(), expected / 8, 1e-6);
}

TEST(RegressionLoss, IsTheSquaredErrorOverTheGlobalRows) {
  const auto logits = some_logits(4, 1);
  const auto labels = at::tensor({0.5, -1.0, 2.0, 0.0}, at::kFloat);
  double expected = 0;
  for (std::int64_t row = 0; row < 4; ++row) {
    expected += std::pow(logits[row][0].item<double>() - labels[row].item<double>(), 2);
  }
  EXPECT_NEAR(regression_loss(logits, labels, 8).item<double>(), expected / 8, 1e-6);
}

TEST(DistillationLoss, IsTheDivergenceFromTheSharpenedTeacherAtThePlacesThatCount) {
  const auto logits = some_logits(6, 4).view({2, 3, 4});
  const auto teacher = at::cos(logits) * 0.3;
  const auto labels = at::tensor({1, -100, 2, -100, 0, 3}, at::kLong).view({2, 3});
  for (const bool is_shifted : {false, true}) {
    double expected = 0;
    for (std::int64_t row = 0; row < 2; ++row) {
      for (std::int64_t place = is_shifted ? 1 : 0; place < 3; ++place) {
        if (labels[row][place].item<std::int64_t>() == -100) continue;
        const auto at_place = place - (is_shifted ? 1 : 0);
        const auto wanted = at::softmax(teacher[row][at_place].to(at::kDouble) / 0.1, -1);
        const auto found = at::log_softmax(logits[row][at_place].to(at::kDouble), -1);
        expected += at::kl_div(found, wanted, at::Reduction::Sum).item<double>();
      }
    }
    EXPECT_NEAR(distillation_loss(logits, teacher, labels, is_shifted, 8).item<double>(), expected / 8, 1e-5);
  }
  EXPECT_NEAR(distillation_loss(teacher / 0.1, teacher, labels, /*is_shifted=*/false, 2).item<double>(), 0, 1e-6);
}

TEST(Losses, OfMicroBatchesAddUpToTheMeanOfTheBatch) {
  const auto labels = at::tensor({2, 0, 1, 2, 1, 0}, at::kLong);
  const auto logits = some_logits(6, 3);
  const auto whole = at::cross_entropy_loss(logits, labels).item<double>();
  double sum = 0;
  for (std::int64_t first = 0; first < 6; first += 2) {
    sum += classification_loss(logits.narrow(0, first, 2), labels.narrow(0, first, 2), 6).item<double>();
  }
  EXPECT_NEAR(sum, whole, 1e-6);
}

TEST(Losses, OfABatchWithoutTargetsAreZeroAndHaveNoGradient) {
  const auto logits = some_logits(6, 4).view({2, 3, 4}).requires_grad_(true);
  const auto labels = at::full({2, 3}, -100, at::kLong);
  const auto loss = token_loss(logits, labels, /*is_shifted=*/true, count_targets(labels, /*is_shifted=*/true));
  EXPECT_EQ(loss.item<float>(), 0);
  loss.backward();
  EXPECT_TRUE(at::equal(logits.grad(), at::zeros({2, 3, 4})));
}

TEST(Losses, AreComputedInFp32) {
  const auto logits = some_logits(4, 1).to(at::kBFloat16);
  const auto wide = regression_loss(logits.to(at::kFloat), at::zeros({4}), 4);
  EXPECT_EQ(regression_loss(logits, at::zeros({4}), 4).scalar_type(), at::kFloat);
  EXPECT_EQ(regression_loss(logits, at::zeros({4}), 4).item<float>(), wide.item<float>());
}

}  // namespace
}  // namespace espalier::model
