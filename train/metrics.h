// SPDX-License-Identifier: Apache-2.0
// Metrics of a whole split, computed once from the logits of all its rows in the order of the file, so that no layout
// counts a row twice or adds in another order.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "data/dataset.h"

namespace espalier::train {

/// By name: accuracy, f1 (of class 1 for two classes, else the mean over classes), matthews; pearson, spearman for
/// regression; loss (mean cross-entropy or squared error) and majority (accuracy of the most frequent label) beside
/// them.
using Metrics = std::map<std::string, double>;

/// logits [N, C] fp32 on the CPU; labels [N] int64 or float. Requires: N > 0.
Metrics compute_metrics(data::TaskKind task, const at::Tensor& logits, const at::Tensor& labels);

/// The metric that decides when the user leaves it to us.
std::string default_metric(data::TaskKind task);
/// Throws: ConfigError when the task does not have it.
void require_metric(data::TaskKind task, const std::string& metric);
/// True when `value` is better than `best` (loss: smaller).
bool is_better(const std::string& metric, double value, double best);

}  // namespace espalier::train
