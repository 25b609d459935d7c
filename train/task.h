// SPDX-License-Identifier: Apache-2.0
// What a dataset's task asks of the model and of training: its head, the loss of a micro-batch, and what evaluation
// keeps of a row. B rows of a micro-batch, C classes, T tokens, V vocabulary
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "data/dataset.h"
#include "model/backbone.h"
#include "model/carry.h"

namespace espalier::train {

/// Targets are tokens: a language model head, logits [B, T, V].
bool predicts_tokens(data::TaskKind task);

/// The head for the dataset's task, `pooling` as the user asks.
model::HeadRequest head_request(const data::DatasetInfo& info, const std::string& pooling);

/// The inputs with what is learned as "labels". Requires: inputs with the tensor that `info` names.
model::NamedTensors with_labels(const data::DatasetInfo& info, model::NamedTensors inputs);
/// Terms that the row gives to the loss.
std::int64_t num_targets(const data::DatasetInfo& info, const data::Split& split, std::int64_t row,
                         std::int64_t max_length);

/// Scalar loss of one micro-batch: the sum over its targets / `num_global_targets`. logits [B, C] or [B, T, V],
/// "labels" as data::NamedTensors has them. Of multiple choices only the right one is learned.
at::Tensor task_loss(data::TaskKind task, const at::Tensor& logits, const model::NamedTensors& inputs,
                     std::int64_t num_global_targets);

/// What an objective that learns from the backbone's own predictions adds to it: of inputs with kTeacherLogits, the
/// sum over target tokens / `num_global_rows`. Requires: a task whose targets are tokens.
at::Tensor teacher_loss(data::TaskKind task, const at::Tensor& logits, const model::NamedTensors& inputs,
                        std::int64_t num_global_rows);

/// What metrics need of each row of the split, fp32 on the host. Pooled heads: the logits [B, C]. seq2seq, causal_lm:
/// [B, 3] log-likelihood, targets, targets whose most likely token is right. multiple_choice: [questions, 4] whether
/// the right choice is the likeliest, the same per token, log-likelihood and targets of the right choice.
at::Tensor row_results(data::TaskKind task, const at::Tensor& logits, const model::NamedTensors& inputs);
/// Columns of row_results().
std::int64_t num_result_columns(data::TaskKind task, const model::HeadSpec& head);

}  // namespace espalier::train
