// SPDX-License-Identifier: Apache-2.0
// B batch, C channels, P patch size, D width
#include "model/patch_embedding_layer.h"

#include <ATen/ATen.h>

#include "model/dropout.h"

namespace espalier::model {

void PatchEmbeddingLayer::forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const {
  const auto pixels = inputs.tensors.at("pixel_values").to(weight_.scalar_type());
  // Patches do not overlap, so the convolution is one matrix product.
  const std::vector<std::int64_t> patch = {spec_.patch_size, spec_.patch_size};
  const auto patches = at::im2col(pixels, patch, /*dilation=*/{1, 1}, /*padding=*/{0, 0}, /*stride=*/patch)
                           .transpose(1, 2);                           // [B, patches, C*P*P]
  const auto tokens = at::linear(patches, weight_.flatten(1), bias_);  // [B, patches, D]
  const auto first = class_token_.expand({tokens.size(0), -1, -1});    // [B, 1, D]
  auto hidden = at::cat({first.to(tokens.scalar_type()), tokens}, 1) + position_;
  if (context.is_training) {
    const LayerPlace place{RandomDomain::kBackbone, plan().index};
    hidden = dropout(hidden, spec_.dropout, context, place, DropoutSite::kEmbedding);
  }
  carry["hidden"] = hidden;
}

void PatchEmbeddingLayer::visit_weights(const WeightVisitor& visit) {
  visit("projection.weight", weight_, {spec_.width, spec_.num_channels, spec_.patch_size, spec_.patch_size});
  visit("projection.bias", bias_, {spec_.width});
  visit("class_token.weight", class_token_, {1, 1, spec_.width});
  visit("position.weight", position_, {1, 1 + spec_.num_patches(), spec_.width});
}

void PatchEmbeddingLayer::visit_linears(const std::function<void(const std::string& role, Linear& linear)>& /*visit*/) {
}

}  // namespace espalier::model
