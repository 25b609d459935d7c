// SPDX-License-Identifier: Apache-2.0
// BitFit (Ben Zaken, Ravfogel, Goldberg, ACL 2022, section 3): biases of linears and norms train, every matrix stays.
#pragma once

#include "peft/chain_method.h"

namespace espalier::peft {

/// Whether a weight is a bias of a linear or norm of the backbone itself: those of the task train whatever they are.
bool is_backbone_bias(const model::Backbone& backbone, const model::LayerPlan& layer, const std::string& role,
                      const std::vector<std::int64_t>& shape);

/// Chain index of the first layer that trains when every bias does. `key`: the option that asks for it.
/// Throws: ConfigError for a backbone that has no biases.
int first_trained_by_biases(const std::string& key, const model::Backbone& backbone);

/// Scalars of the backbone's biases. Throws: ConfigError for a backbone that has none.
std::int64_t count_bitfit(const model::Backbone& backbone);

class BitFitMethod final : public ChainMethod {
 public:
  /// Makes the biases and the task's weights trained in the slots of `slice`, which outlives the method.
  /// Throws: ConfigError for a backbone that has no biases.
  BitFitMethod(model::StageSlice& slice, const model::WeightSource& weights);
  [[nodiscard]] std::string_view name() const override { return "bitfit"; }
  [[nodiscard]] Route route() const override { return Route::kThrough; }
  [[nodiscard]] nlohmann::json describe_export() const override { return {}; }
};

}  // namespace espalier::peft
