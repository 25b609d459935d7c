// SPDX-License-Identifier: Apache-2.0
// Last link of the chain. A pooled head makes "logits" [B, C] of "hidden" [B, T, D]; it computes in fp32 whatever the
// compute type: every method trains it, and it costs next to nothing. A language model head makes "logits" [B, T, V] in
// the compute type, with weights that are the backbone's.
// B rows, T tokens (of the decoder where there is one), D width, C labels, V vocabulary
#pragma once

#include "model/slice.h"

namespace espalier::model {

/// Roles: dense.{weight [D, D], bias}, classifier.{weight [C, D], bias}.
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

/// Roles: output.weight [V, D], output.bias [V] or [1, V].
class LanguageModelHeadLayer : public Layer {
 public:
  explicit LanguageModelHeadLayer(LayerPlan plan) : Layer(std::move(plan)), spec_(*this->plan().head) {}
  void forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const override;
  void visit_weights(const WeightVisitor& visit) override;
  void visit_linears(const std::function<void(const std::string& role, Linear& linear)>& /*visit*/) override {}

 private:
  HeadSpec spec_;
  at::Tensor weight_, bias_;
};

}  // namespace espalier::model
