// SPDX-License-Identifier: Apache-2.0
#include "model/loss.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace espalier::model {
namespace {

/// A batch without anything that counts has a loss of 0, and no gradient.
at::Tensor mean_of(const at::Tensor& sum, std::int64_t count) {
  return sum / static_cast<double>(std::max<std::int64_t>(count, 1));
}

at::Tensor targets_of(const at::Tensor& labels, bool is_shifted) {
  return is_shifted ? labels.slice(/*dim=*/1, 1) : labels;
}

}  // namespace

at::Tensor classification_loss(const at::Tensor& logits, const at::Tensor& labels, std::int64_t num_global_rows) {
  const auto sum = at::cross_entropy_loss(logits.to(at::kFloat), labels, /*weight=*/{}, at::Reduction::Sum);
  return mean_of(sum, num_global_rows);
}

at::Tensor regression_loss(const at::Tensor& logits, const at::Tensor& labels, std::int64_t num_global_rows) {
  const auto sum = at::mse_loss(logits.to(at::kFloat).squeeze(-1), labels.to(at::kFloat), at::Reduction::Sum);
  return mean_of(sum, num_global_rows);
}

at::Tensor multi_label_loss(const at::Tensor& logits, const at::Tensor& labels, std::int64_t num_global_labels) {
  const auto sum = at::binary_cross_entropy_with_logits(logits.to(at::kFloat), labels.to(at::kFloat), /*weight=*/{},
                                                        /*pos_weight=*/{}, at::Reduction::Sum);
  return mean_of(sum, num_global_labels);
}

std::int64_t count_targets(const at::Tensor& labels, bool is_shifted) {
  return targets_of(labels, is_shifted).ne(kIgnoredLabel).sum().item<std::int64_t>();
}

at::Tensor token_loss(const at::Tensor& logits, const at::Tensor& labels, bool is_shifted,
                      std::int64_t num_global_targets) {
  const auto predicted = is_shifted ? logits.slice(/*dim=*/1, 0, -1) : logits;
  const auto sum = at::cross_entropy_loss(predicted.flatten(0, 1).to(at::kFloat),
                                          targets_of(labels, is_shifted).flatten(), /*weight=*/{}, at::Reduction::Sum,
                                          /*ignore_index=*/kIgnoredLabel);
  return mean_of(sum, num_global_targets);
}

at::Tensor distillation_loss(const at::Tensor& logits, const at::Tensor& teacher, const at::Tensor& labels,
                             bool is_shifted, std::int64_t num_global_rows) {
  constexpr double kTeacherTemperature = 0.1;
  const auto counted = targets_of(labels, is_shifted).flatten().ne(kIgnoredLabel).nonzero().squeeze(-1);
  const auto predicted = [&](const at::Tensor& of) {
    const auto places = is_shifted ? of.slice(/*dim=*/1, 0, -1) : of;
    return places.flatten(0, 1).index_select(0, counted).to(at::kFloat);  // [places, V]
  };
  const auto wanted = (predicted(teacher) / kTeacherTemperature).log_softmax(-1);
  const auto sum = (wanted.exp() * (wanted - predicted(logits).log_softmax(-1))).sum();
  return mean_of(sum, num_global_rows);
}

}  // namespace espalier::model
