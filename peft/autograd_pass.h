// SPDX-License-Identifier: Apache-2.0
// The stage pass of the routes through and beside: the autograd graph from the incoming leaves and the trained tensors
// to the outgoing entries, kept from the forward to the backward of one micro-batch.
#pragma once

#include <vector>

#include "peft/method.h"

namespace espalier::peft {

/// Turns the entries that need a gradient into leaves of a new graph, in place, and returns those alone.
/// Requires: `incoming` has them.
model::Carry make_leaves(model::Carry& incoming, const model::CarryPlan& plan);

class AutogradPass final : public StagePass {
 public:
  /// `leaves` and `outputs` as the graph knows them. Inert tensors of `trained` are left out. Requires: outputs that
  /// require grad.
  AutogradPass(model::Carry leaves, model::Carry outputs, const std::vector<TrainedTensor>& trained);
  model::Carry backward(const model::Carry& output_gradients, const GradientSink& sink) override;

 private:
  model::Carry leaves_;
  model::Carry outputs_;
  std::vector<at::Tensor> trained_;
  std::vector<int> trained_index_;
};

/// What the stage hands on: `outputs` cut off from the graph, and, with `keeps_pass`, the pass over those that have one
/// (null where none has).
StageResult finish_stage(model::Carry outputs, model::Carry leaves, const std::vector<TrainedTensor>& trained,
                         bool keeps_pass);

}  // namespace espalier::peft
