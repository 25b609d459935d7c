// SPDX-License-Identifier: Apache-2.0
// Bottleneck adapters in every block: A(x) = scale Up(drop(act(Down(x)))).
//   houlsby:  x + (y + A(y)) for the output y of attention and of feed-forward (Houlsby et al., ICML 2019, section 2.1)
//   parallel: x + feed_forward(x) + A(x) (He et al., ICLR 2022, section 3.3)
// docs/methods/baselines.md.
#pragma once

#include "common/options.h"
#include "peft/bottleneck.h"
#include "peft/chain_method.h"

namespace espalier::peft {

/// Keys "peft.adapter.*".
void describe(OptionTable& table, AdapterConfig& config);

/// The bottleneck of a block of `spec`. Throws: ConfigError for an unknown activation, a rank above the width, and a
/// scale with placement houlsby.
BottleneckSpec plan_adapter(const AdapterConfig& config, const model::BlockSpec& spec);

/// Trained scalars without the task head. Throws: ConfigError for options that do not fit the backbone.
std::int64_t count_adapter(const AdapterConfig& config, const model::Backbone& backbone);

class AdapterMethod final : public ChainMethod {
 public:
  /// Draws a bottleneck for every place and puts it into the blocks of `slice`, which outlives the method; the task's
  /// weights, and with norms_trained the blocks' norms, train in their slots.
  /// Throws: ConfigError for options that do not fit the backbone.
  AdapterMethod(const AdapterConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
                std::uint64_t seed);
  [[nodiscard]] std::string_view name() const override { return "adapter"; }
  [[nodiscard]] Route route() const override { return Route::kThrough; }
  [[nodiscard]] nlohmann::json describe_export() const override;

 private:
  AdapterConfig config_;
};

}  // namespace espalier::peft
