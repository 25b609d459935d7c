// SPDX-License-Identifier: Apache-2.0
// Bottleneck adapters in every block: behind attention and feed-forward (Houlsby et al., ICML 2019), or beside the
// feed-forward (He et al., ICLR 2022). docs/methods/baselines.md has the equations.
#pragma once

#include "common/options.h"
#include "peft/bottleneck.h"
#include "peft/chain_method.h"

namespace espalier::peft {

/// Keys "peft.adapter.*".
void describe(OptionTable& table, AdapterConfig& config);

/// The bottleneck of a block of `spec`. Throws: ConfigError for an unknown activation and a rank above the width.
BottleneckSpec plan_adapter(const AdapterConfig& config, const model::BlockSpec& spec);

/// Trained scalars without the task head.
std::int64_t count_adapter(const AdapterConfig& config, const model::Backbone& backbone);

class AdapterMethod final : public ChainMethod {
 public:
  AdapterMethod(const AdapterConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
                std::uint64_t seed);
  [[nodiscard]] std::string_view name() const override { return "adapter"; }
  [[nodiscard]] Route route() const override { return Route::kThrough; }
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> describe_export() const override;

 private:
  AdapterConfig config_;
};

}  // namespace espalier::peft
