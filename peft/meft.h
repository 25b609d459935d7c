// SPDX-License-Identifier: Apache-2.0
// MEFT1, MEFT2, MEFT3 (Liao, Tan, Monz, "Make Pre-trained Model Reversible", NeurIPS 2023, figure 4 and listing 1): two
// streams run through the frozen backbone, y1 = lambda x1 + F(x2), y2 = beta x2 + G(y1), so that a block's inputs are
// computed back from its outputs and nothing else is kept. Adapters inside F and G train. docs/methods/meft.md
// B rows, T tokens, D width
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/meft_pass.h"
#include "peft/meft_plan.h"
#include "peft/method.h"

namespace espalier::peft {

/// Trained scalars of the factors inside F and G. Throws: ConfigError for options that do not fit the backbone.
std::int64_t count_meft_factors(const MethodConfig& config, const model::Backbone& backbone);

/// BERT's pooler stands before the classifier and stays frozen. Its scalars do not train, though they are of the head.
bool freezes_pooler(const MethodConfig& config, const model::LayerPlan& layer);

class MeftMethod final : public Method {
 public:
  /// Puts adapters and factors into the blocks of `slice`, which outlives the method. Throws: ConfigError for options
  /// that do not fit the backbone, and for an inversion whose results would depend on where the stages are cut.
  MeftMethod(const MethodConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
             std::uint64_t seed);
  [[nodiscard]] std::string_view name() const override { return "meft"; }
  [[nodiscard]] Route route() const override { return Route::kReversible; }
  /// Between blocks "stream_1" and "stream_2" in place of "hidden", each [B, T, D]: int32, or the real type where the
  /// inversion is not exact.
  [[nodiscard]] model::CarryPlan plan_carry(int first_layer, const model::BatchShape& shape) const override;
  [[nodiscard]] const std::vector<TrainedTensor>& trained() const override { return trained_; }
  [[nodiscard]] StageResult forward(model::Carry incoming, const model::StageInputs& inputs,
                                    const model::ForwardContext& context, bool keeps_pass) override;
  [[nodiscard]] nlohmann::json describe_export() const override;
  [[nodiscard]] std::map<std::string, at::Tensor> kept_tensors() const override;
  [[nodiscard]] Resampling* resampling() override;
  [[nodiscard]] std::optional<double> inversion_error() const override { return setting_.check.error(); }

 private:
  /// What travels up through the layers of a stage.
  struct Climb {
    MeftBlock::Surroundings around;  ///< its carry: "hidden" where there are no streams, "memory", "position_bias"
    std::optional<Streams> streams;
    MeftPass* pass = nullptr;  ///< null: nothing is kept
    bool is_checked = false;
  };
  void check_cut(int layer) const;
  /// Takes the pooler back from what trains.
  void freeze_pooler(model::Layer& head, const model::WeightSource& weights);
  /// What the method of the factors trains in `layer`.
  [[nodiscard]] std::vector<TrainedTensor> factors_of(const model::Layer& layer) const;
  [[nodiscard]] bool is_anchor(int layer) const;
  [[nodiscard]] bool is_reversible_here(int layer) const;
  [[nodiscard]] MeftBlockStep::Neighbours neighbours_of(int layer) const;
  [[nodiscard]] const model::Layer& layer(int index) const;

  void run_block(int index, Climb& climb);
  void run_joint(int index, Climb& climb);
  /// Leaves of what a joint layer reads; sets "hidden".
  model::Carry enter_joint(int index, Climb& climb) const;
  /// The state [B, T, D] that layer `reader` reads of the streams below it.
  [[nodiscard]] at::Tensor merge(int reader, const at::Tensor& x1, const at::Tensor& x2) const;

  MeftConfig config_;
  model::StageSlice& slice_;
  MeftSetting setting_;
  std::unique_ptr<Method> factors_;          ///< puts factors on the linears; null: none. Never run.
  std::map<int, MeftBlock> blocks_;          ///< by index in the chain
  std::map<int, at::Tensor> merge_weights_;  ///< [D, 2D] of the concat merge, by the layer that reads it
  std::map<int, TrainedRange> joint_trained_;
  std::vector<TrainedTensor> trained_;
};

}  // namespace espalier::peft
