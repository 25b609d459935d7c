// SPDX-License-Identifier: Apache-2.0
// Expected values are counted by hand.
#include "train/metrics.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "common/error.h"
#include "train/config.h"

namespace espalier::train {
namespace {

at::Tensor logits_of(const std::vector<std::int64_t>& predictions, std::int64_t num_labels) {
  auto logits = at::zeros({static_cast<std::int64_t>(predictions.size()), num_labels});
  for (std::size_t i = 0; i < predictions.size(); ++i) {
    logits[static_cast<std::int64_t>(i)][predictions[i]] = 1;
  }
  return logits;
}

TEST(Metrics, AgreeWithHandCountsForTwoClasses) {
  // tp 3, fp 1, fn 2, tn 2
  const auto labels = at::tensor({1, 1, 1, 1, 1, 0, 0, 0}, at::kLong);
  const auto metrics = compute_metrics(data::TaskKind::kClassification, logits_of({1, 1, 1, 0, 0, 1, 0, 0}, 2), labels);
  EXPECT_DOUBLE_EQ(metrics.at("accuracy"), 5.0 / 8);
  EXPECT_DOUBLE_EQ(metrics.at("f1"), 6.0 / 9);
  EXPECT_DOUBLE_EQ(metrics.at("accuracy_f1"), (5.0 / 8 + 6.0 / 9) / 2);
  EXPECT_NEAR(metrics.at("matthews"), (3.0 * 2 - 1.0 * 2) / std::sqrt(4.0 * 5 * 3 * 4), 1e-12);
  EXPECT_DOUBLE_EQ(metrics.at("majority"), 5.0 / 8);
}

TEST(Metrics, MatthewsOfManyClassesIsOneWhenAllIsRightAndZeroWhenAllIsOneClass) {
  const auto labels = at::tensor({0, 1, 2, 1}, at::kLong);
  EXPECT_NEAR(compute_metrics(data::TaskKind::kClassification, logits_of({0, 1, 2, 1}, 3), labels).at("matthews"), 1,
              1e-12);
  EXPECT_EQ(compute_metrics(data::TaskKind::kClassification, logits_of({1, 1, 1, 1}, 3), labels).at("matthews"), 0);
}

TEST(Metrics, LossIsTheMeanCrossEntropy) {
  const auto logits = at::tensor({0.0, 0.0, std::log(3.0), 0.0}, at::kDouble).to(at::kFloat).view({2, 2});
  const auto labels = at::tensor({0, 0}, at::kLong);
  EXPECT_NEAR(compute_metrics(data::TaskKind::kClassification, logits, labels).at("loss"),
              0.5 * (std::log(2.0) + std::log(4.0 / 3)), 1e-7);
}

TEST(Metrics, SpearmanSharesTheRanksOfTies) {
  const auto predictions = at::tensor({1.0F, 2.0F, 2.0F, 4.0F}).view({4, 1});
  const auto labels = at::tensor({10.0F, 20.0F, 30.0F, 25.0F});
  const auto metrics = compute_metrics(data::TaskKind::kRegression, predictions, labels);
  // Ranks 1, 2.5, 2.5, 4 against 1, 2, 4, 3: covariance 3, variances 4.5 and 5.
  EXPECT_NEAR(metrics.at("spearman"), 3.0 / std::sqrt(4.5 * 5.0), 1e-12);
  EXPECT_NEAR(metrics.at("pearson"), 18.75 / std::sqrt(4.75 * 218.75), 1e-12);
  EXPECT_NEAR(metrics.at("correlation"), (3.0 / std::sqrt(4.5 * 5.0) + 18.75 / std::sqrt(4.75 * 218.75)) / 2, 1e-12);
}

TEST(Metrics, RefuseLabelsAndResultsThatDoNotBelongTogether) {
  const auto logits = logits_of({0, 1, 1}, 2);
  const auto classes = [](std::vector<std::int64_t> labels) { return at::tensor(labels, at::kLong); };
  const auto refuses = [](data::TaskKind task, const at::Tensor& results, const at::Tensor& labels) {
    EXPECT_THROW(compute_metrics(task, results, labels), InternalError) << data::to_string(task);
  };
  for (const auto task : {data::TaskKind::kClassification, data::TaskKind::kImageClassification}) {
    EXPECT_NO_THROW(compute_metrics(task, logits, classes({0, 1, 0})));
    refuses(task, logits, classes({0, 1, 2}));
    refuses(task, logits, classes({0, -1, 0}));
    refuses(task, logits, classes({0, 1}));
    refuses(task, logits, {});
    refuses(task, at::zeros({0, 2}), at::zeros({0}, at::kLong));
  }
  refuses(data::TaskKind::kRegression, logits, at::zeros({3}));
  refuses(data::TaskKind::kRegression, at::zeros({3, 1}), at::zeros({2}));
  refuses(data::TaskKind::kMultiLabel, logits, at::zeros({3, 1}));
  refuses(data::TaskKind::kSeq2Seq, logits, {});
  refuses(data::TaskKind::kMultipleChoice, at::zeros({3, 3}), {});
}

TEST(Metrics, TheDecidingMetricMustFitTheTask) {
  EXPECT_NO_THROW(require_metric(data::TaskKind::kRegression, "pearson"));
  EXPECT_NO_THROW(require_metric(data::TaskKind::kRegression, "correlation"));
  EXPECT_NO_THROW(require_metric(data::TaskKind::kClassification, "accuracy_f1"));
  EXPECT_THROW(require_metric(data::TaskKind::kRegression, "accuracy"), ConfigError);
  EXPECT_NO_THROW(require_metric(data::TaskKind::kSeq2Seq, "perplexity"));
  EXPECT_THROW(require_metric(data::TaskKind::kSeq2Seq, "accuracy"), ConfigError);
  EXPECT_TRUE(is_better("loss", 0.1, 0.2));
  EXPECT_TRUE(is_better("perplexity", 2, 3));
  EXPECT_TRUE(is_better("accuracy", 0.2, 0.1));
}

constexpr data::TaskKind kTasks[] = {data::TaskKind::kClassification,     data::TaskKind::kRegression,
                                     data::TaskKind::kMultiLabel,         data::TaskKind::kSeq2Seq,
                                     data::TaskKind::kCausalLm,           data::TaskKind::kMultipleChoice,
                                     data::TaskKind::kImageClassification};

bool has_metric(data::TaskKind task, const std::string& metric) {
  try {
    require_metric(task, metric);
    return true;
  } catch (const ConfigError&) {
    return false;
  }
}

TEST(Metrics, TheOptionTakesEachThatDecidesForSomeTask) {
  TrainConfig config;
  OptionTable table;
  describe(table, config);
  for (const auto& metric : deciding_metrics()) {
    EXPECT_TRUE(std::ranges::any_of(kTasks, [&](data::TaskKind task) { return has_metric(task, metric); })) << metric;
    table.read_text("[train]\nbest_metric = " + metric, metric);
    EXPECT_EQ(config.best_metric, metric);
  }
  for (const auto task : kTasks) {
    EXPECT_THAT(deciding_metrics(), testing::Contains(default_metric(task)));
  }
  EXPECT_THAT(deciding_metrics(), testing::IsSupersetOf({"perplexity", "token_accuracy", "accuracy_norm"}));
}

}  // namespace
}  // namespace espalier::train
