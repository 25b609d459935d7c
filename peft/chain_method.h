// SPDX-License-Identifier: Apache-2.0
// Base of the methods that run the chain as it is (full, LoRA, probe): what trains are weights of layers or deltas on
// linears, and the graph begins at the first layer that has any.
#pragma once

#include <vector>

#include "peft/method.h"

namespace espalier::peft {

class ChainMethod : public Method {
 public:
  /// The chain's own entries, prompts among the tokens; one needs a gradient where it is made of something that trains.
  [[nodiscard]] model::CarryPlan plan_carry(int first_layer, const model::BatchShape& shape) const final;
  [[nodiscard]] const std::vector<TrainedTensor>& trained() const final { return trained_; }
  [[nodiscard]] StageResult forward(model::Carry incoming, const model::StageInputs& inputs,
                                    const model::ForwardContext& context, bool keeps_pass) final;

 protected:
  struct Options {
    /// Chain index of the first layer of the whole model with a trained tensor.
    int first_trained_layer = 0;
    /// Layers before it draw dropout in training.
    bool has_frozen_dropout = true;
    /// The tables of relative positions train, so their bias carries a gradient back to them.
    bool trains_position_bias = false;
  };
  /// Owns: nothing; `slice` outlives the method.
  ChainMethod(model::StageSlice& slice, Options options) : slice_(slice), options_(options) {}
  [[nodiscard]] model::StageSlice& slice() { return slice_; }
  [[nodiscard]] const model::StageSlice& slice() const { return slice_; }
  [[nodiscard]] std::vector<TrainedTensor>& trained() { return trained_; }

 private:
  /// Chain index of the first layer above what makes `entry`: whatever trains below it needs the entry's gradient.
  [[nodiscard]] int origin_of(const model::CarryEntry& entry, int first_layer) const;

  model::StageSlice& slice_;
  Options options_;
  std::vector<TrainedTensor> trained_;
};

}  // namespace espalier::peft
