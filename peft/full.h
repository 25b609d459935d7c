// SPDX-License-Identifier: Apache-2.0
// Full fine-tuning: every weight of the model trains. The upper bound in quality and in cost that the other methods are
// measured by.
#pragma once

#include "peft/chain_method.h"

namespace espalier::peft {

/// Scalars that train, a tied one once, without those of the task.
std::int64_t count_full(const model::Backbone& backbone);

class FullMethod final : public ChainMethod {
 public:
  /// Makes every weight in the slots of `slice`, which outlives the method, a trained fp32 leaf (train_layer()).
  FullMethod(model::StageSlice& slice, const model::WeightSource& weights);
  [[nodiscard]] std::string_view name() const override { return "full"; }
  [[nodiscard]] Route route() const override { return Route::kThrough; }
  [[nodiscard]] nlohmann::json describe_export() const override { return {}; }
};

}  // namespace espalier::peft
