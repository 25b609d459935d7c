// SPDX-License-Identifier: Apache-2.0
// The probe: only the task head trains, on what the frozen backbone says in evaluation mode. The floor that a method
// must beat.
#pragma once

#include "peft/chain_method.h"

namespace espalier::peft {

class ProbeMethod final : public ChainMethod {
 public:
  ProbeMethod(model::StageSlice& slice, const model::WeightSource& weights);
  [[nodiscard]] std::string_view name() const override { return "probe"; }
  [[nodiscard]] Route route() const override { return Route::kBeside; }
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> describe_export() const override { return {}; }
};

}  // namespace espalier::peft
