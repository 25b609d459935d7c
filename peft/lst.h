// SPDX-License-Identifier: Apache-2.0
// LST, ladder side-tuning (Sung, Cho, Bansal, NeurIPS 2022): a narrow transformer runs beside the frozen backbone,
// reads each block's output through a trained down-projection and a gate, and alone carries gradients.
// docs/methods/lst.md has the equations.
#pragma once

#include <memory>
#include <vector>

#include "common/options.h"
#include "peft/lst_pruning.h"
#include "peft/method.h"

namespace espalier::peft {

/// Keys "peft.lst.*".
void describe(OptionTable& table, LstConfig& config);

/// What the options make of a backbone. Pure.
struct LstPlan {
  model::BlockSpec side_block;
  std::vector<bool> is_kept;  ///< by chain index: a side block stands beside this block
  bool has_ladders = true;
  bool has_gates = true;
  int last_tap_layer = -1;  ///< chain index of the last block whose output a ladder reads: the backbone ends there
};

/// Throws: ConfigError naming what does not divide, a layer that is not there, a backbone that the side network cannot
/// imitate.
LstPlan plan_lst(const LstConfig& config, const model::Backbone& backbone);

/// Trained scalars without the task head, gates of dropped layers included.
std::int64_t count_lst(const LstConfig& config, const model::Backbone& backbone);

class LstMethod final : public Method {
 public:
  LstMethod(const LstConfig& config, model::StageSlice& slice, const model::WeightSource& weights, std::uint64_t seed);

  [[nodiscard]] std::string_view name() const override { return "lst"; }
  [[nodiscard]] Route route() const override { return Route::kBeside; }
  [[nodiscard]] model::CarryPlan plan_carry(int first_layer, const model::BatchShape& shape) const override;
  [[nodiscard]] const std::vector<TrainedTensor>& trained() const override { return trained_; }
  [[nodiscard]] StageResult forward(model::Carry incoming, const model::StageInputs& inputs,
                                    const model::ForwardContext& context, bool keeps_pass) override;
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> describe_export() const override;

 private:
  /// What stands beside one block; empty where the layer is dropped.
  struct SideLayer {
    model::Linear ladder;
    at::Tensor gate;  ///< [1]
    std::unique_ptr<model::TransformerBlock> block;
  };
  /// One micro-batch on its way up.
  struct Lanes {
    model::Carry backbone;           ///< "hidden" [B, T, D], never in a graph
    at::Tensor side;                 ///< [B, T, S]
    model::BlockInputs side_inputs;  ///< the attention bias in the side network's type
  };

  at::Tensor add(const std::string& name, const at::Tensor& value);
  model::Linear add_linear(const std::string& name, std::int64_t in_features, std::int64_t out_features, bool has_bias,
                           std::uint64_t seed);
  void add_block(const std::string& name, model::TransformerBlock& block, const PrunedBlock& pruned,
                 std::uint64_t seed);

  [[nodiscard]] at::ScalarType side_type() const;
  [[nodiscard]] model::ForwardContext frozen_context(const model::ForwardContext& context) const;
  void embed(const model::Layer& layer, const model::StageInputs& inputs, const model::ForwardContext& context,
             Lanes& lanes) const;
  /// One block of the backbone, as far as a ladder still reads above it, and what stands beside it.
  void climb(const model::Layer& layer, const SideLayer& beside, const model::StageInputs& inputs,
             const model::ForwardContext& context, Lanes& lanes) const;
  /// Drops the backbone's state where no ladder reads it above `layer`.
  void release_above(const model::Layer& layer, Lanes& lanes) const;
  /// From the side state to the logits.
  [[nodiscard]] at::Tensor read_out(const model::Layer& head, const model::StageInputs& inputs,
                                    const model::ForwardContext& context, const at::Tensor& side) const;

  LstConfig config_;
  LstPlan plan_;
  model::StageSlice& slice_;
  model::Linear first_, up_;
  std::vector<SideLayer> side_layers_;  ///< one for each layer of the slice
  std::vector<TrainedTensor> trained_;
};

}  // namespace espalier::peft
