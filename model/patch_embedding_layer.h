// SPDX-License-Identifier: Apache-2.0
// First link of an image model (Dosovitskiy et al., ViT, ICLR 2021, equation 1): cuts pixel_values [B, C, Y, X] into
// patches, projects each, puts the class token before them, adds positions. Sets "hidden" [B, 1 + patches, D].
// B rows, C channels, Y x X pixels, P pixels along a patch, D width
#pragma once

#include "model/slice.h"

namespace espalier::model {

/// Roles: projection.{weight [D, C, P, P], bias}, class_token.weight [1, 1, D], position.weight [1, 1 + patches, D].
class PatchEmbeddingLayer : public Layer {
 public:
  explicit PatchEmbeddingLayer(LayerPlan plan) : Layer(std::move(plan)), spec_(*this->plan().patch_embedding) {}
  void forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const override;
  void visit_weights(const WeightVisitor& visit) override;
  void visit_linears(const std::function<void(const std::string& role, Linear& linear)>& visit) override;

 private:
  PatchEmbeddingSpec spec_;
  at::Tensor weight_, bias_, class_token_, position_;
};

}  // namespace espalier::model
