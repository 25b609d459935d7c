// SPDX-License-Identifier: Apache-2.0
// The synthetic task of the paper: a teacher that differs from the start by a product of some rank, learned with
// factors of a lower one. ROSA, which draws them anew, reaches it; LoRA cannot.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "model/initial.h"
#include "optim/adamw.h"
#include "peft/rosa_split.h"

namespace espalier::peft {

/// The linear task y = W x, where the teacher's W is the start and a product of rank `teacher_rank`.
struct SyntheticTask {
  std::int64_t in = 0, out = 0, teacher_rank = 0, num_rows = 0;
  double learning_rate = 0;

  /// Mean squared error on rows of their own after `epochs` with factors of `rank`. LoRA: nothing is ever drawn anew.
  [[nodiscard]] double train(std::int64_t rank, bool is_lora, std::int64_t epochs) const;
};

inline double SyntheticTask::train(std::int64_t rank, bool is_lora, std::int64_t epochs) const {
  const auto draw = [](std::int64_t rows, std::int64_t columns, const char* name) {
    return model::normal_by_name({rows, columns}, 1, 3, name);
  };
  const double scale = 1 / std::sqrt(static_cast<double>(in));
  const at::Tensor start = draw(out, in, "start") * scale;
  const at::Tensor teacher = start + draw(out, teacher_rank, "left").mm(draw(teacher_rank, in, "right"));
  const at::Tensor inputs = draw(num_rows, in, "train"), test = draw(1000, in, "test");
  const RosaConfig config{.rank = static_cast<double>(rank)};
  RosaParts parts{start.clone(), at::zeros({rank, in}), at::zeros({out, rank})};
  if (is_lora) {
    parts.a = model::uniform_by_name({rank, in}, scale, 1, "a");
  } else {
    resample(parts, config, 1, 0, "w");
  }
  optim::AdamW optimizer({.weight_decay = 0}, {{"a", parts.a}, {"b", parts.b}});
  const at::Tensor targets = inputs.mm(teacher.t());
  std::int64_t events = 0;
  for (std::int64_t epoch = 1; epoch <= epochs; ++epoch) {
    if (!is_lora && epoch > 4 && (epoch - 1) % std::max<std::int64_t>(1, epochs / 24) == 0) {
      resample(parts, config, 1, ++events, "w");
      optimizer.restart({"a", "b"});
    }
    for (std::int64_t row = 0; row + 64 <= num_rows; row += 64) {
      const at::Tensor x = inputs.narrow(0, row, 64);
      const at::Tensor narrow = x.mm(parts.a.t());
      const at::Tensor error = (x.mm(parts.rest.t()) + narrow.mm(parts.b.t()) - targets.narrow(0, row, 64)) *
                               (2.0 / (64 * static_cast<double>(out)));
      optimizer.step({error.mm(parts.b).t().mm(x), error.t().mm(narrow)}, learning_rate);
    }
  }
  return test.mm((merged_weight(parts, at::kFloat) - teacher).t()).square().mean().item<double>();
}

}  // namespace espalier::peft
