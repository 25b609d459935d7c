// SPDX-License-Identifier: Apache-2.0
// Metrics of a whole split, computed once from what all its rows gave in the order of the file, so that no layout
// counts a row twice or adds in another order.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace espalier::train {

/// By name. classification: accuracy, f1 (of class 1 for two classes, else the mean over classes), accuracy_f1 (the
/// mean of both, as GLUE has it), matthews, majority (accuracy of the most frequent label). regression: pearson,
/// spearman, correlation (the mean of both, as GLUE has it). multi_label: accuracy (all labels of a row right), f1
/// (over all labels). seq2seq, causal_lm: perplexity, token_accuracy. multiple_choice: accuracy (the right choice is
/// the likeliest), accuracy_norm (the likeliest per token), perplexity of the right choices. Each: loss, the mean over
/// targets.
using Metrics = std::map<std::string, double>;

/// results: what row_results() keeps of all rows; labels: those of a pooled head, [N] int64 or float, or [N, L].
/// Requires: N > 0, shapes as num_result_columns() has them, classes that the logits have.
Metrics compute_metrics(data::TaskKind task, const at::Tensor& results, const at::Tensor& labels);

/// Every metric that may decide for some task, each once: what require_metric() allows.
std::vector<std::string> deciding_metrics();
/// The metric that decides when the user leaves it to us.
std::string default_metric(data::TaskKind task);
/// Throws: ConfigError when the task does not have it.
void require_metric(data::TaskKind task, const std::string& metric);
/// True when `value` is better than `best` (loss, perplexity: smaller).
bool is_better(const std::string& metric, double value, double best);

}  // namespace espalier::train
