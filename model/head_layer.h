// SPDX-License-Identifier: Apache-2.0
// Last link of the chain: pools "hidden" [B, T, D] and sets "logits" [B, C]. It computes in fp32 whatever the compute
// type: every method trains it, and it costs next to nothing.
#pragma once

#include "model/slice.h"

namespace espalier::model {

/// Roles: dense.{weight,bias}, classifier.{weight,bias}.
class HeadLayer : public Layer {
 public:
  explicit HeadLayer(LayerPlan plan);
  void forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const override;
  void visit_weights(const WeightVisitor& visit) override;
  void visit_linears(const std::function<void(const std::string& role, Linear& linear)>& visit) override;

 private:
  HeadSpec spec_;
  Linear dense_, classifier_;
};

}  // namespace espalier::model
