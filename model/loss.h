// SPDX-License-Identifier: Apache-2.0
// Losses of one micro-batch, in fp32, as a sum over rows divided by the rows of the whole global batch, so that adding
// the micro-batches of any layout gives the mean.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace espalier::model {

/// logits [B, C], labels [B] int64 -> scalar sum of cross-entropy / num_global_rows.
at::Tensor classification_loss(const at::Tensor& logits, const at::Tensor& labels, std::int64_t num_global_rows);
/// logits [B, 1], labels [B] float -> scalar sum of squared errors / num_global_rows.
at::Tensor regression_loss(const at::Tensor& logits, const at::Tensor& labels, std::int64_t num_global_rows);

}  // namespace espalier::model
