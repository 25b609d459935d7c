// SPDX-License-Identifier: Apache-2.0
// LoRA (Hu et al., ICLR 2022, section 4.1, equation 3): y = W x + b + (alpha / R) B A drop(x) on chosen linears of the
// blocks; A and B train, W stays. Rank-stabilized (Kalajdzievski, 2023): alpha / sqrt(R). R rank
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/options.h"
#include "peft/chain_method.h"
#include "peft/linear_targets.h"

namespace espalier::peft {

/// Keys "peft.lora.*".
void describe(OptionTable& table, LoraConfig& config);

/// The targets of one block, in the block's own order. Requires: layer.block.
/// Throws: ConfigError for a rank above a linear's smaller width.
std::vector<LinearTarget> plan_lora(const LoraConfig& config, const model::LayerPlan& layer);

/// What multiplies B A.
double lora_scale(const LoraConfig& config);

/// Trained scalars without the task head. Throws: ConfigError for options that do not fit the backbone.
std::int64_t count_lora(const LoraConfig& config, const model::Backbone& backbone);

class LoraDelta final : public model::LinearDelta {
 public:
  at::Tensor a;        ///< [R, in]
  at::Tensor b;        ///< [out, R]
  double scale = 1;    ///< of B A
  double dropout = 0;  ///< on x, in training
  model::LayerPlace place;
  model::DropoutSite site = model::DropoutSite::kFactor;
  /// x [..., in] -> [..., out], as two thin products: B A is never formed.
  [[nodiscard]] at::Tensor forward(const at::Tensor& x, const model::ForwardContext& context) const override;
};

class LoraMethod final : public ChainMethod {
 public:
  /// Puts a delta on every target in `slice`, which outlives the method; the task's weights, and the biases that the
  /// options choose, train in their slots. Throws: ConfigError for options that do not fit the backbone.
  LoraMethod(const LoraConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
             std::uint64_t seed);
  [[nodiscard]] std::string_view name() const override { return "lora"; }
  [[nodiscard]] Route route() const override { return Route::kThrough; }
  [[nodiscard]] nlohmann::json describe_export() const override;

 private:
  LoraConfig config_;
};

}  // namespace espalier::peft
