// SPDX-License-Identifier: Apache-2.0
// The synthetic task of the paper: a teacher that differs from the start by rank 24. ROSA with 8 directions at a time
// reaches it, LoRA of rank 8 cannot.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "model/initial.h"
#include "optim/adamw.h"
#include "peft/rosa_split.h"

namespace espalier::peft {
namespace {

at::Tensor random_matrix(std::int64_t rows, std::int64_t columns, const char* name) {
  return model::normal_by_name({rows, columns}, 1, 3, name);
}

/// The paper's linear task: y = W x, where the teacher's W is the start and a product of rank 24.
struct Synthetic {
  static constexpr std::int64_t kIn = 512, kOut = 32, kTeacherRank = 24;
  at::Tensor start = random_matrix(kOut, kIn, "start") / std::sqrt(static_cast<double>(kIn));
  at::Tensor teacher = start + random_matrix(kOut, kTeacherRank, "left").mm(random_matrix(kTeacherRank, kIn, "right"));
  at::Tensor inputs = random_matrix(5000, kIn, "train"), test = random_matrix(1000, kIn, "test");

  /// Mean squared error on the test rows after `epochs`. LoRA: nothing is ever drawn anew.
  double train(const RosaConfig& config, bool is_lora, std::int64_t epochs) const {
    const auto rank = static_cast<std::int64_t>(config.rank);
    RosaParts parts{start.clone(), at::zeros({rank, kIn}), at::zeros({kOut, rank})};
    if (is_lora) {
      parts.a = model::uniform_by_name({rank, kIn}, 1 / std::sqrt(static_cast<double>(kIn)), 1, "a");
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
      for (std::int64_t row = 0; row + 64 <= inputs.size(0); row += 64) {
        const at::Tensor x = inputs.narrow(0, row, 64);
        const at::Tensor narrow = x.mm(parts.a.t());
        const at::Tensor error =
            (x.mm(parts.rest.t()) + narrow.mm(parts.b.t()) - targets.narrow(0, row, 64)) * (2.0 / (64 * kOut));
        optimizer.step({error.mm(parts.b).t().mm(x), error.t().mm(narrow)}, 1e-3);
      }
    }
    return test.mm((merged_weight(parts, at::kFloat) - teacher).t()).square().mean().item<double>();
  }
};

TEST(RosaSynthetic, IsSolvedByDrawnSubspacesAndNotByLowRank) {
  const Synthetic task;
  constexpr std::int64_t kEpochs = 500;
  EXPECT_LT(task.train({.rank = 8}, /*is_lora=*/false, kEpochs), 1);
  EXPECT_GT(task.train({.rank = 8}, /*is_lora=*/true, kEpochs), 3e3);
}

}  // namespace
}  // namespace espalier::peft
