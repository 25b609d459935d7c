// SPDX-License-Identifier: Apache-2.0
// Losses of one micro-batch, in fp32, as a sum divided by what the whole global batch counts (rows, labels or target
// tokens), so that adding the micro-batches of any layout gives the mean. Where it counts nothing the loss is 0.
// B rows, C classes, L labels, T tokens, V vocabulary
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace espalier::model {

/// A label that no loss counts.
inline constexpr std::int64_t kIgnoredLabel = -100;

/// logits [B, C], labels [B] int64 -> scalar sum of cross-entropy / num_global_rows.
at::Tensor classification_loss(const at::Tensor& logits, const at::Tensor& labels, std::int64_t num_global_rows);
/// logits [B, 1], labels [B] float -> scalar sum of squared errors / num_global_rows.
at::Tensor regression_loss(const at::Tensor& logits, const at::Tensor& labels, std::int64_t num_global_rows);

/// logits [B, L], labels [B, L] of 0 and 1 -> scalar sum of binary cross-entropies / num_global_labels.
at::Tensor multi_label_loss(const at::Tensor& logits, const at::Tensor& labels, std::int64_t num_global_labels);

/// Targets that token_loss() counts: labels [B, T] that are not -100, without the first of each row where `is_shifted`.
std::int64_t count_targets(const at::Tensor& labels, bool is_shifted);
/// logits [B, T, V], labels [B, T] with -100 where nothing is to be predicted -> scalar sum of cross-entropy /
/// num_global_targets. `is_shifted`: place t predicts label t + 1 (a causal model reads its own labels).
at::Tensor token_loss(const at::Tensor& logits, const at::Tensor& labels, bool is_shifted,
                      std::int64_t num_global_targets);

/// logits, teacher [B, T, V], labels as token_loss() -> scalar sum over the places that it counts of the
/// Kullback-Leibler divergence of softmax(logits) from softmax(teacher / 0.1), / num_global_rows (Sung et al., LST,
/// 2022: the teacher is the frozen backbone).
at::Tensor distillation_loss(const at::Tensor& logits, const at::Tensor& teacher, const at::Tensor& labels,
                             bool is_shifted, std::int64_t num_global_rows);

}  // namespace espalier::model
