// SPDX-License-Identifier: Apache-2.0
// ROSA, random subspace adaptation (Hameed et al., 2024, section 3): y = W_f x + b + B (A x), where A and B are R
// singular directions of the weight and train, and W_f, the rest, stays. From time to time the product is merged back
// and others are drawn (peft/rosa_split.h), so what is learned is not limited to rank R. docs/methods/rosa.md.
#pragma once

#include "common/options.h"
#include "peft/chain_method.h"
#include "peft/linear_targets.h"
#include "peft/rosa_split.h"

namespace espalier::peft {

/// Keys "peft.rosa.*".
void describe(OptionTable& table, RosaConfig& config);

/// Rank of the factors of `target`: the option's integer, or its share of the smaller width, at least 1. From the
/// smaller width on the weight itself trains.
std::int64_t rosa_rank(const RosaConfig& config, const LinearTarget& target);

/// What is cut as one matrix: a linear, or those that the backbone's folder stores as one (GPT-2's c_attn), which share
/// their A.
struct RosaTarget {
  LinearTarget whole;                 ///< its name, and the sizes of the matrix
  std::vector<LinearTarget> linears;  ///< whose rows it has, in their order
};

/// The targets of one block. "attention.query_key_value" among the options' joins the three where they are stored so.
/// Requires: layer.block.
std::vector<RosaTarget> plan_rosa(const RosaConfig& config, const model::LayerPlan& layer);

/// Trained scalars without the task head. Throws: ConfigError for options that contradict each other or do not fit the
/// backbone.
std::int64_t count_rosa(const RosaConfig& config, const model::Backbone& backbone);

class RosaDelta final : public model::LinearDelta {
 public:
  at::Tensor a;                ///< [R, in]
  at::Tensor b;                ///< [rows of the whole matrix, R]: out, or those of several linears
  std::int64_t first_row = 0;  ///< of the linear's own rows of b
  std::int64_t num_rows = 0;   ///< 0: all
  /// [out, R]
  [[nodiscard]] at::Tensor own_b() const { return num_rows == 0 ? b : b.narrow(0, first_row, num_rows); }
  /// x [..., in] -> [..., out], as two thin products: B A is never formed.
  [[nodiscard]] at::Tensor forward(const at::Tensor& x, const model::ForwardContext& context) const override;
};

/// Starts as the backbone with factors of zero: the first event (event 0) gives them their directions.
class RosaMethod final : public ChainMethod, public Resampling {
 public:
  /// Gives every target in `slice`, which outlives the method, an fp32 copy of its weight (kept_tensors()) and a delta,
  /// or, where the rank is the whole width, trains the copy. Biases and the task's weights train in their slots as the
  /// options say.
  /// Throws: ConfigError for options that contradict each other or do not fit the backbone.
  RosaMethod(const RosaConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
             std::uint64_t seed);
  [[nodiscard]] std::string_view name() const override { return "rosa"; }
  [[nodiscard]] Route route() const override { return Route::kThrough; }
  [[nodiscard]] std::map<std::string, at::Tensor> kept_tensors() const override { return kept_; }
  [[nodiscard]] Resampling* resampling() override { return this; }
  [[nodiscard]] nlohmann::json describe_export() const override;

  [[nodiscard]] std::optional<std::int64_t> event_before(std::int64_t step,
                                                         std::int64_t steps_per_epoch) const override;
  [[nodiscard]] int num_weights() const override { return static_cast<int>(weights_.size()); }
  [[nodiscard]] WeightParts parts(int weight) override;
  void resample(int weight, std::int64_t event) override;

 private:
  struct Weight {
    std::string name;  ///< of the target: "encoder.0.attention.query"
    RosaParts parts;
  };
  using Linears = std::map<std::string, model::Linear*>;  // by role
  void adapt(model::Layer& layer, const RosaTarget& target, const Linears& linears, const model::WeightSource& weights);
  /// The weight of the target [out, in], of which its linears' are views.
  at::Tensor join_weights(model::Layer& layer, const RosaTarget& target, const Linears& linears,
                          const model::WeightSource& weights);
  void keep_head(model::Layer& layer, const model::WeightSource& weights);

  RosaConfig config_;
  std::uint64_t seed_;
  std::vector<Weight> weights_;
  std::map<std::string, at::Tensor> kept_;
};

}  // namespace espalier::peft
