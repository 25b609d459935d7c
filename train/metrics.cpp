// SPDX-License-Identifier: Apache-2.0
#include "train/metrics.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "common/check.h"
#include "common/error.h"

namespace espalier::train {
namespace {

std::vector<double> to_doubles(const at::Tensor& tensor) {
  const auto values = tensor.to(at::kDouble).contiguous();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

double pearson(const std::vector<double>& x, const std::vector<double>& y) {
  const auto n = static_cast<double>(x.size());
  const double mean_x = std::accumulate(x.begin(), x.end(), 0.0) / n;
  const double mean_y = std::accumulate(y.begin(), y.end(), 0.0) / n;
  double xy = 0;
  double xx = 0;
  double yy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    xy += (x[i] - mean_x) * (y[i] - mean_y);
    xx += (x[i] - mean_x) * (x[i] - mean_x);
    yy += (y[i] - mean_y) * (y[i] - mean_y);
  }
  return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0.0;
}

/// Ranks from 1; equal values share the mean of their ranks.
std::vector<double> ranks_of(const std::vector<double>& values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (std::size_t first = 0; first < order.size();) {
    std::size_t end = first;
    while (end < order.size() && values[order[end]] == values[order[first]]) {
      ++end;
    }
    const double shared = 0.5 * static_cast<double>(first + 1 + end);
    for (std::size_t i = first; i < end; ++i) {
      ranks[order[i]] = shared;
    }
    first = end;
  }
  return ranks;
}

void check_results(const at::Tensor& results, std::int64_t num_columns) {
  ESPALIER_CHECK(results.dim() == 2 && results.size(0) > 0 && results.size(1) == num_columns,
                 "results [{}] in place of [rows, {}]", fmt::join(results.sizes(), ", "), num_columns);
}

/// `shape`: of the labels of all rows.
void check_logits(const at::Tensor& logits, const at::Tensor& labels, at::IntArrayRef shape) {
  check_results(logits, logits.size(-1));
  ESPALIER_CHECK(labels.defined() && labels.sizes() == shape, "labels [{}] in place of [{}]",
                 labels.defined() ? fmt::format("{}", fmt::join(labels.sizes(), ", ")) : "none",
                 fmt::join(shape, ", "));
}

/// confusion[truth][prediction]
using Confusion = std::vector<std::vector<double>>;

double f1_of_class(const Confusion& confusion, std::size_t label) {
  double predicted = 0;
  double actual = 0;
  for (std::size_t i = 0; i < confusion.size(); ++i) {
    predicted += confusion[i][label];
    actual += confusion[label][i];
  }
  return predicted + actual > 0 ? 2 * confusion[label][label] / (predicted + actual) : 0.0;
}

double f1(const Confusion& confusion) {
  if (confusion.size() == 2) {
    return f1_of_class(confusion, 1);
  }
  double sum = 0;
  for (std::size_t label = 0; label < confusion.size(); ++label) {
    sum += f1_of_class(confusion, label);
  }
  return sum / static_cast<double>(confusion.size());
}

/// Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
double matthews(const Confusion& confusion) {
  double correct = 0;
  double total = 0;
  double covariance = 0;
  double predicted_squares = 0;
  double actual_squares = 0;
  for (std::size_t k = 0; k < confusion.size(); ++k) {
    double predicted = 0;
    double actual = 0;
    for (std::size_t i = 0; i < confusion.size(); ++i) {
      predicted += confusion[i][k];
      actual += confusion[k][i];
    }
    correct += confusion[k][k];
    total += actual;
    covariance += predicted * actual;
    predicted_squares += predicted * predicted;
    actual_squares += actual * actual;
  }
  const double denominator = std::sqrt((total * total - predicted_squares) * (total * total - actual_squares));
  return denominator > 0 ? (correct * total - covariance) / denominator : 0.0;
}

Metrics classification_metrics(const at::Tensor& logits, const at::Tensor& labels) {
  check_logits(logits, labels, {logits.size(0)});
  const auto truth = labels.to(at::kLong).contiguous();
  const auto prediction = logits.argmax(/*dim=*/1).contiguous();
  Confusion confusion(static_cast<std::size_t>(logits.size(1)),
                      std::vector<double>(static_cast<std::size_t>(logits.size(1))));
  for (std::int64_t row = 0; row < truth.numel(); ++row) {
    const std::int64_t label = truth.const_data_ptr<std::int64_t>()[row];
    ESPALIER_CHECK(label >= 0 && label < logits.size(1), "label {} in row {} of {} classes", label, row,
                   logits.size(1));
    confusion[static_cast<std::size_t>(label)]
             [static_cast<std::size_t>(prediction.const_data_ptr<std::int64_t>()[row])] += 1;
  }
  double correct = 0;
  double majority = 0;
  for (std::size_t k = 0; k < confusion.size(); ++k) {
    correct += confusion[k][k];
    majority = std::max(majority, std::accumulate(confusion[k].begin(), confusion[k].end(), 0.0));
  }
  const auto rows = static_cast<double>(truth.numel());
  const auto log_probabilities = logits.to(at::kDouble).log_softmax(1).gather(1, truth.unsqueeze(1));
  const double accuracy = correct / rows;
  const double f1_score = f1(confusion);
  return {{"accuracy", accuracy},
          {"f1", f1_score},
          {"accuracy_f1", 0.5 * (accuracy + f1_score)},
          {"matthews", matthews(confusion)},
          {"majority", majority / rows},
          {"loss", -log_probabilities.mean().item<double>()}};
}

Metrics regression_metrics(const at::Tensor& logits, const at::Tensor& labels) {
  check_results(logits, 1);
  check_logits(logits, labels, {logits.size(0)});
  const auto prediction = to_doubles(logits.reshape({-1}));
  const auto truth = to_doubles(labels);
  double squares = 0;
  for (std::size_t i = 0; i < truth.size(); ++i) {
    squares += (prediction[i] - truth[i]) * (prediction[i] - truth[i]);
  }
  const double linear = pearson(prediction, truth);
  const double by_rank = pearson(ranks_of(prediction), ranks_of(truth));
  return {{"pearson", linear},
          {"spearman", by_rank},
          {"correlation", 0.5 * (linear + by_rank)},
          {"loss", squares / static_cast<double>(truth.size())}};
}

Metrics multi_label_metrics(const at::Tensor& logits, const at::Tensor& labels) {
  check_logits(logits, labels, logits.sizes());
  const auto truth = labels.gt(0.5);
  const auto prediction = logits.gt(0);
  const auto both = (truth & prediction).sum().item<double>();
  const auto either = truth.sum().item<double>() + prediction.sum().item<double>();
  const auto wide = logits.to(at::kDouble);
  const auto loss = (at::softplus(wide) - wide * truth.to(at::kDouble)).mean().item<double>();
  return {{"accuracy", truth.eq(prediction).all(/*dim=*/1).to(at::kDouble).mean().item<double>()},
          {"f1", either > 0 ? 2 * both / either : 0.0},
          {"loss", loss}};
}

/// Loss and perplexity from columns of log-likelihoods and targets.
Metrics likelihood_metrics(const at::Tensor& results, std::int64_t first_column) {
  const auto sums = results.to(at::kDouble).sum(/*dim=*/0);
  const double loss = -sums[first_column].item<double>() / std::max(1.0, sums[first_column + 1].item<double>());
  return {{"loss", loss}, {"perplexity", std::exp(loss)}};
}

Metrics token_metrics(const at::Tensor& results) {
  check_results(results, 3);
  auto metrics = likelihood_metrics(results, 0);
  const auto sums = results.to(at::kDouble).sum(/*dim=*/0);
  metrics["token_accuracy"] = sums[2].item<double>() / std::max(1.0, sums[1].item<double>());
  return metrics;
}

Metrics choice_metrics(const at::Tensor& results) {
  check_results(results, 4);
  auto metrics = likelihood_metrics(results, 2);
  const auto means = results.to(at::kDouble).mean(/*dim=*/0);
  metrics["accuracy"] = means[0].item<double>();
  metrics["accuracy_norm"] = means[1].item<double>();
  return metrics;
}

/// What may decide which evaluation is the best; the first is the default.
std::vector<std::string> deciding_metrics(data::TaskKind task) {
  switch (task) {
    case data::TaskKind::kClassification:
    case data::TaskKind::kImageClassification:
      return {"accuracy", "f1", "accuracy_f1", "matthews", "loss"};
    case data::TaskKind::kRegression:
      return {"spearman", "pearson", "correlation", "loss"};
    case data::TaskKind::kMultiLabel:
      return {"f1", "accuracy", "loss"};
    case data::TaskKind::kSeq2Seq:
    case data::TaskKind::kCausalLm:
      return {"loss", "perplexity", "token_accuracy"};
    case data::TaskKind::kMultipleChoice:
      return {"accuracy", "accuracy_norm", "loss", "perplexity"};
  }
  throw InternalError("deciding_metrics: unknown task");
}

}  // namespace

Metrics compute_metrics(data::TaskKind task, const at::Tensor& results, const at::Tensor& labels) {
  switch (task) {
    case data::TaskKind::kClassification:
    case data::TaskKind::kImageClassification:
      return classification_metrics(results, labels);
    case data::TaskKind::kRegression:
      return regression_metrics(results, labels);
    case data::TaskKind::kMultiLabel:
      return multi_label_metrics(results, labels);
    case data::TaskKind::kSeq2Seq:
    case data::TaskKind::kCausalLm:
      return token_metrics(results);
    case data::TaskKind::kMultipleChoice:
      return choice_metrics(results);
  }
  throw InternalError("compute_metrics: unknown task");
}

std::vector<std::string> deciding_metrics() {
  std::vector<std::string> metrics;
  for (const auto task : {data::TaskKind::kClassification, data::TaskKind::kRegression, data::TaskKind::kMultiLabel,
                          data::TaskKind::kSeq2Seq, data::TaskKind::kCausalLm, data::TaskKind::kMultipleChoice,
                          data::TaskKind::kImageClassification}) {
    for (const auto& metric : deciding_metrics(task)) {
      if (std::find(metrics.begin(), metrics.end(), metric) == metrics.end()) {
        metrics.push_back(metric);
      }
    }
  }
  return metrics;
}

std::string default_metric(data::TaskKind task) {
  return deciding_metrics(task).front();
}

void require_metric(data::TaskKind task, const std::string& metric) {
  const auto known = deciding_metrics(task);
  if (std::find(known.begin(), known.end(), metric) == known.end()) {
    throw ConfigError(fmt::format("train.best_metric: expected one of {} for a {} task, found '{}'",
                                  fmt::join(known, ", "), data::to_string(task), metric));
  }
}

bool is_better(const std::string& metric, double value, double best) {
  return metric == "loss" || metric == "perplexity" ? value < best : value > best;
}

}  // namespace espalier::train
