// SPDX-License-Identifier: Apache-2.0
// First link of the chain: token, type and position embeddings, norm, dropout. Sets "hidden" [B, T, D].
#pragma once

#include "model/slice.h"

namespace espalier::model {

/// Roles: token.weight, position.weight, token_type.weight, norm.{weight,bias}.
class EmbeddingLayer : public Layer {
 public:
  explicit EmbeddingLayer(LayerPlan plan);
  void forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const override;
  void visit_weights(const WeightVisitor& visit) override;
  void visit_linears(const std::function<void(const std::string& role, Linear& linear)>& visit) override;

 private:
  EmbeddingSpec spec_;
  at::Tensor token_;       // [V, D]
  at::Tensor position_;    // [P, D]
  at::Tensor token_type_;  // [K, D]
  Norm norm_;
};

}  // namespace espalier::model
