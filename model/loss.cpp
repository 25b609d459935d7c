// SPDX-License-Identifier: Apache-2.0
#include "model/loss.h"

#include <ATen/ATen.h>

namespace espalier::model {

at::Tensor classification_loss(const at::Tensor& logits, const at::Tensor& labels, std::int64_t num_global_rows) {
  const auto sum = at::cross_entropy_loss(logits.to(at::kFloat), labels, /*weight=*/{}, at::Reduction::Sum);
  return sum / static_cast<double>(num_global_rows);
}

at::Tensor regression_loss(const at::Tensor& logits, const at::Tensor& labels, std::int64_t num_global_rows) {
  const auto sum = at::mse_loss(logits.to(at::kFloat).squeeze(-1), labels.to(at::kFloat), at::Reduction::Sum);
  return sum / static_cast<double>(num_global_rows);
}

}  // namespace espalier::model
