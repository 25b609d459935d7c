// SPDX-License-Identifier: Apache-2.0
// BitFit (Ben Zaken, Ravfogel, Goldberg, ACL 2022): the biases of linears and norms train, every matrix stays.
#pragma once

#include "peft/chain_method.h"

namespace espalier::peft {

/// Scalars of the backbone's biases. Throws: ConfigError for a backbone that has none.
std::int64_t count_bitfit(const model::Backbone& backbone);

class BitFitMethod final : public ChainMethod {
 public:
  BitFitMethod(model::StageSlice& slice, const model::WeightSource& weights);
  [[nodiscard]] std::string_view name() const override { return "bitfit"; }
  [[nodiscard]] Route route() const override { return Route::kThrough; }
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> describe_export() const override { return {}; }
};

}  // namespace espalier::peft
