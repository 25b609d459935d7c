// SPDX-License-Identifier: Apache-2.0
// LoRA (Hu et al., ICLR 2022): y = W x + b + (alpha / r) B A drop(x) on chosen linears of the blocks; A and B train, W
// stays. Rank-stabilized (Kalajdzievski, 2023): alpha / sqrt(r).
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

/// The targets of one block, in the block's own order.
/// Throws: ConfigError for a rank above a linear's width.
std::vector<LinearTarget> plan_lora(const LoraConfig& config, const model::LayerPlan& layer);

/// What multiplies B A.
double lora_scale(const LoraConfig& config);

/// Trained scalars without the task head.
std::int64_t count_lora(const LoraConfig& config, const model::Backbone& backbone);

class LoraDelta final : public model::LinearDelta {
 public:
  // R rank
  at::Tensor a;  ///< [R, in]
  at::Tensor b;  ///< [out, R]
  double scale = 1;
  double dropout = 0;
  model::LayerPlace place;
  model::DropoutSite site = model::DropoutSite::kFactor;
  [[nodiscard]] at::Tensor forward(const at::Tensor& x, const model::ForwardContext& context) const override;
};

class LoraMethod final : public ChainMethod {
 public:
  LoraMethod(const LoraConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
             std::uint64_t seed);
  [[nodiscard]] std::string_view name() const override { return "lora"; }
  [[nodiscard]] Route route() const override { return Route::kThrough; }
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> describe_export() const override;

 private:
  LoraConfig config_;
};

}  // namespace espalier::peft
