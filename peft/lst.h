// SPDX-License-Identifier: Apache-2.0
// LST, ladder side-tuning (Sung, Cho, Bansal, NeurIPS 2022, section 3.2): a narrow transformer of the backbone's own
// kind runs beside the frozen backbone, reads each block's output H_i through a trained down-projection and a gate, and
// alone carries gradients: s = SideBlock_i(g s + (1 - g) (W_i H_i + b_i)), g = sigmoid(alpha_i / temperature).
// docs/methods/lst.md has all equations.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "peft/lst_plan.h"
#include "peft/lst_pruning.h"
#include "peft/side_network.h"

namespace espalier::peft {

// B batch, T tokens, D backbone width, S side width; K networks that climb together have one dimension more in front
class LstNetwork final : public SideNetwork, private ImportanceStart {
 public:
  /// Draws the side layers beside those of `slice`, or starts them pruned (lst_pruning.h); the task's weights train in
  /// the slots of the slice. Owns: nothing of `slice` and `weights`, which outlive the network.
  /// Throws: ConfigError for options that do not fit the backbone.
  LstNetwork(const LstConfig& config, model::StageSlice& slice, const model::WeightSource& weights, std::uint64_t seed);

  [[nodiscard]] std::string_view name() const override { return "lst"; }
  [[nodiscard]] nlohmann::json describe_export() const override;
  [[nodiscard]] const std::vector<TrainedTensor>& trained() const override { return trained_; }
  [[nodiscard]] ImportanceStart* importance_start() override {
    return config_.side_initial == "fisher" ? this : nullptr;
  }
  /// "hidden" [B, T, S], in a decoder "memory" [B, T, S], and "position_bias" of its own tables.
  [[nodiscard]] model::CarryPlan plan_carry(int first_layer, const model::BatchShape& shape) const override;
  [[nodiscard]] int last_tap_layer() const override { return plan_.last_tap_layer; }
  [[nodiscard]] bool has_backbone_dropout() const override { return config_.backbone_dropout; }
  [[nodiscard]] double distill_weight() const override { return config_.distill_weight; }
  void visit_weights(const std::function<void(at::Tensor& slot)>& visit) override;
  [[nodiscard]] model::StageInputs adapt(const model::StageInputs& inputs) const override;
  void climb(std::size_t place, const Tap& tap, const model::StageInputs& inputs, const model::ForwardContext& context,
             model::Carry& side) const override;
  [[nodiscard]] at::Tensor read_out(const model::Layer& head, const Tap& tap, const model::StageInputs& inputs,
                                    const model::ForwardContext& context, const model::Carry& side) const override;

 private:
  /// What stands beside one layer of the slice.
  struct SideLayer {
    model::Linear first;                  ///< of an embedding
    model::Linear ladder;                 ///< of a kept block
    at::Tensor gate;                      ///< [1], of every block
    std::unique_ptr<model::Layer> layer;  ///< a kept block, or the norm that ends a stack
  };

  [[nodiscard]] std::int64_t num_rows() const override { return config_.fisher_rows; }
  [[nodiscard]] std::int64_t num_handed_on() const override { return plan_.side_width(); }
  at::Tensor start(const WeightReader& importance, const at::Tensor& below) override;

  /// Side layers of this slice, pruned to what matters.
  [[nodiscard]] std::map<std::uint64_t, PrunedLayer> prune(model::LayerRange range, const WeightReader& importance,
                                                           std::vector<std::int64_t>& kept) const;
  at::Tensor add(const std::string& name, const at::Tensor& value);
  at::Tensor add_gate(const std::string& name, bool is_inert);
  model::Linear add_linear(const std::string& name, std::int64_t in_features, std::int64_t out_features, bool has_bias,
                           std::uint64_t seed);
  /// Fills the weights of a side layer from what pruning kept, or at random.
  void add_layer(const std::string& name, model::Layer& layer, const PrunedLayer& pruned, std::uint64_t seed);

  [[nodiscard]] at::ScalarType side_type() const;
  /// sigmoid(gate / T) * side + (1 - sigmoid(gate / T)) * other
  [[nodiscard]] at::Tensor mix(const at::Tensor& gate, const at::Tensor& side, const at::Tensor& other) const;
  /// The side state with the ladder of `beside` joined to it.
  [[nodiscard]] at::Tensor join_ladder(const SideLayer& beside, const Tap& tap, const model::ForwardContext& context,
                                       const at::Tensor& side) const;

  LstConfig config_;
  LstPlan plan_;
  model::StageSlice& slice_;
  const model::WeightSource& weights_;
  model::Linear up_;
  at::Tensor merge_gate_;               // [1]
  std::vector<SideLayer> side_layers_;  // one for each layer of the slice
  std::vector<TrainedTensor> trained_;
};

}  // namespace espalier::peft
