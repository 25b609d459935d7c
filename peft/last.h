// SPDX-License-Identifier: Apache-2.0
// LAST, low-rank attention side-tuning (Tang, Fu, Zhu, Wu, 2024, arXiv 2402.04009): beside each group of frozen blocks
// stand modules of low-rank self-attention alone, whose updates are added to the backbone's last state.
// A module: f(X) = X + softmax(Q K^T / sqrt(R / H)) V W_up; Q, K, V are projections of LN(X) to rank R, in H heads.
// docs/methods/last.md has the recurrence and the form in which it is computed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/options.h"
#include "model/attention_cache.h"
#include "peft/normed_linear.h"
#include "peft/side_network.h"

namespace espalier::peft {

/// Keys "peft.last.*".
void describe(OptionTable& table, LastConfig& config);

/// Trained scalars without the task head. Throws: ConfigError for options that do not fit the backbone.
std::int64_t count_last(const LastConfig& config, const model::Backbone& backbone);

// B batch, T tokens, D backbone width, R rank, H heads of a module; K networks that climb together have one dimension
// more in front of their states
class LastNetwork final : public SideNetwork {
 public:
  /// Draws the modules of the groups whose last block is in `slice`, which outlives the network; the task head trains
  /// in the slots of the slice. Throws: ConfigError for options that do not fit the backbone.
  LastNetwork(const LastConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
              std::uint64_t seed);

  [[nodiscard]] std::string_view name() const override { return "last"; }
  [[nodiscard]] nlohmann::json describe_export() const override;
  [[nodiscard]] const std::vector<TrainedTensor>& trained() const override { return trained_; }
  /// "shared.sum.GROUP_SIZE" [B, T, D], the backbone's states added up, and, above the first module, "delta" [B, T, D],
  /// the updates.
  [[nodiscard]] model::CarryPlan plan_carry(int first_layer, const model::BatchShape& shape) const override;
  [[nodiscard]] int last_tap_layer() const override { return last_block_; }
  [[nodiscard]] bool has_backbone_dropout() const override { return true; }
  void visit_weights(const std::function<void(at::Tensor& slot)>& visit) override;
  [[nodiscard]] model::StageInputs adapt(const model::StageInputs& inputs) const override;
  void climb(std::size_t place, const Tap& tap, const model::StageInputs& inputs, const model::ForwardContext& context,
             model::Carry& side) const override;
  [[nodiscard]] at::Tensor read_out(const model::Layer& head, const Tap& tap, const model::StageInputs& inputs,
                                    const model::ForwardContext& context, const model::Carry& side) const override;

 private:
  /// softmax(Q K^T / sqrt(R / H)) V W_up of what the norm makes of its input.
  struct Module {
    model::Norm norm;
    model::Linear qkv;  ///< D -> 3 R
    model::Linear up;   ///< R -> D
    model::LayerPlace place;
  };

  Module add_module(const model::LayerPlan& block, std::int64_t number, std::uint64_t seed);
  at::Tensor add(const std::string& name, const at::Tensor& value);
  /// What a module's attention mixes, [B, T, R], of x [B, T, D], which `recipe` makes again.
  [[nodiscard]] at::Tensor mix(const Module& module, const at::Tensor& x, const StateRecipe& recipe,
                               const model::BlockSpec& spec, const model::StageInputs& inputs,
                               const model::ForwardContext& context) const;
  [[nodiscard]] at::ScalarType side_type() const;

  LastConfig config_;
  model::StageSlice& slice_;
  std::string sum_name_;
  int first_block_ = 0, last_block_ = 0;      // chain indices
  std::vector<std::vector<Module>> modules_;  // one list for each layer of the slice, empty inside a group
  std::vector<TrainedTensor> trained_;
};

}  // namespace espalier::peft
