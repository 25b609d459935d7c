// SPDX-License-Identifier: Apache-2.0
// The probe: only the task's own weights train: the head, on what the frozen backbone says in evaluation mode, and a
// visual embedding. The floor that a method must beat.
#pragma once

#include "peft/chain_method.h"

namespace espalier::peft {

class ProbeMethod final : public ChainMethod {
 public:
  /// Makes the task's weights trained in the slots of `slice`, which outlives the method.
  ProbeMethod(model::StageSlice& slice, const model::WeightSource& weights);
  [[nodiscard]] std::string_view name() const override { return "probe"; }
  /// Through, where a visual embedding trains below the backbone.
  [[nodiscard]] Route route() const override;
  [[nodiscard]] nlohmann::json describe_export() const override { return {}; }
};

}  // namespace espalier::peft
