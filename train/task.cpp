// SPDX-License-Identifier: Apache-2.0
#include "train/task.h"

#include <ATen/ATen.h>

#include "common/error.h"
#include "model/loss.h"
#include "peft/method.h"

namespace espalier::train {
namespace {

using data::TaskKind;

/// A causal model reads its own labels: place t predicts label t + 1.
bool is_shifted(TaskKind task) {
  return task == TaskKind::kCausalLm || task == TaskKind::kMultipleChoice;
}

/// The labels with -100 in the rows of wrong choices.
at::Tensor right_choices(const at::Tensor& labels, const model::NamedTensors& inputs) {
  const auto right = inputs.at("choice_offsets").slice(/*dim=*/0, 0, -1) + inputs.at("answers");  // [questions]
  auto kept = at::full_like(labels, -100);
  kept.index_copy_(/*dim=*/0, right, labels.index_select(/*dim=*/0, right));
  return kept;
}

/// [B, 3]: log-likelihood, targets, right guesses of each row.
at::Tensor token_results(TaskKind task, const at::Tensor& logits, const at::Tensor& labels) {
  const auto targets = is_shifted(task) ? labels.slice(/*dim=*/1, 1) : labels;                      // [B, T']
  const auto scores = (is_shifted(task) ? logits.slice(/*dim=*/1, 0, -1) : logits).to(at::kFloat);  // [B, T', V]
  const auto counts = targets.ne(-100);
  const auto safe = targets.clamp_min(0).unsqueeze(-1);
  const auto likelihood = scores.gather(-1, safe).squeeze(-1) - scores.logsumexp(-1);  // [B, T']
  const auto is_right = scores.argmax(-1).eq(targets) & counts;
  return at::stack({at::where(counts, likelihood, at::zeros_like(likelihood)).sum(1), counts.sum(1).to(at::kFloat),
                    is_right.sum(1).to(at::kFloat)},
                   /*dim=*/1);
}

at::Tensor choice_results(const at::Tensor& of_rows, const model::NamedTensors& inputs) {
  const auto offsets = inputs.at("choice_offsets").cpu();
  const auto answers = inputs.at("answers").cpu();
  auto results = at::zeros({answers.numel(), 4}, at::kFloat);
  for (std::int64_t question = 0; question < answers.numel(); ++question) {
    const auto first = offsets[question].item<std::int64_t>(), end = offsets[question + 1].item<std::int64_t>();
    const auto answer = answers[question].item<std::int64_t>();
    const auto sums = of_rows.select(/*dim=*/1, 0).slice(/*dim=*/0, first, end);
    const auto targets = of_rows.select(/*dim=*/1, 1).slice(/*dim=*/0, first, end);
    const auto means = sums / targets.clamp_min(1);
    results[question][0] = sums.argmax().item<std::int64_t>() == answer ? 1 : 0;
    results[question][1] = means.argmax().item<std::int64_t>() == answer ? 1 : 0;
    results[question][2] = sums[answer];
    results[question][3] = targets[answer];
  }
  return results;
}

}  // namespace

bool predicts_tokens(TaskKind task) {
  return task == TaskKind::kSeq2Seq || task == TaskKind::kCausalLm || task == TaskKind::kMultipleChoice;
}

model::HeadRequest head_request(const data::DatasetInfo& info, const std::string& pooling) {
  return {.num_labels = info.num_labels,
          .pooling = pooling,
          .kind = predicts_tokens(info.task) ? "language_model" : "pooled"};
}

model::NamedTensors with_labels(const data::DatasetInfo& info, model::NamedTensors inputs) {
  if (info.label_tensor != "labels") {
    inputs["labels"] = inputs.at(info.label_tensor);
  }
  return inputs;
}

std::int64_t num_targets(const data::DatasetInfo& info, const data::Split& split, std::int64_t row,
                         std::int64_t max_length) {
  return info.label_tensor == "labels" ? split.num_targets(row, max_length) : 1;
}

at::Tensor task_loss(TaskKind task, const at::Tensor& logits, const model::NamedTensors& inputs,
                     std::int64_t num_global_targets) {
  const auto labels = inputs.at("labels");
  switch (task) {
    case TaskKind::kClassification:
    case TaskKind::kImageClassification:
      return model::classification_loss(logits, labels.to(logits.device()), num_global_targets);
    case TaskKind::kRegression:
      return model::regression_loss(logits, labels.to(logits.device()), num_global_targets);
    case TaskKind::kMultiLabel:
      return model::multi_label_loss(logits, labels.to(logits.device()), num_global_targets);
    case TaskKind::kSeq2Seq:
    case TaskKind::kCausalLm:
      return model::token_loss(logits, labels.to(logits.device()), is_shifted(task), num_global_targets);
    case TaskKind::kMultipleChoice:
      return model::token_loss(logits, right_choices(labels, inputs).to(logits.device()), is_shifted(task),
                               num_global_targets);
  }
  throw InternalError("task_loss: unknown task");
}

at::Tensor teacher_loss(TaskKind task, const at::Tensor& logits, const model::NamedTensors& inputs,
                        std::int64_t num_global_rows) {
  const auto& labels = inputs.at("labels");
  const auto learned = task == TaskKind::kMultipleChoice ? right_choices(labels, inputs) : labels;
  return model::distillation_loss(logits, inputs.at(peft::kTeacherLogits), learned.to(logits.device()),
                                  is_shifted(task), num_global_rows);
}

at::Tensor row_results(TaskKind task, const at::Tensor& logits, const model::NamedTensors& inputs) {
  if (!predicts_tokens(task)) {
    return logits.to(at::kFloat).cpu();
  }
  const auto of_rows = token_results(task, logits, inputs.at("labels").to(logits.device())).cpu();
  return task == TaskKind::kMultipleChoice ? choice_results(of_rows, inputs) : of_rows;
}

std::int64_t num_result_columns(TaskKind task, const model::HeadSpec& head) {
  return task == TaskKind::kMultipleChoice ? 4 : predicts_tokens(task) ? 3 : head.num_labels;
}

}  // namespace espalier::train
