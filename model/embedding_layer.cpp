// SPDX-License-Identifier: Apache-2.0
// B batch, T tokens, D width
#include "model/embedding_layer.h"

#include <ATen/ATen.h>

#include <utility>

#include "model/dropout.h"

namespace espalier::model {

namespace {

/// Row 0 for padding is `pad`; real tokens count on from there.
at::Tensor positions_after_padding(const at::Tensor& input_ids, std::int64_t pad) {
  const auto is_token = input_ids.ne(pad).to(at::kLong);
  return is_token.cumsum(1).mul_(is_token).add_(pad);  // [B, T]
}

}  // namespace

EmbeddingLayer::EmbeddingLayer(LayerPlan plan) : Layer(std::move(plan)), spec_(*this->plan().embedding) {
  norm_.epsilon = spec_.norm_epsilon;
  norm_.width = spec_.width;
}

void EmbeddingLayer::forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const {
  const auto& input_ids = inputs.tensors.at("input_ids");  // [B, T]
  auto hidden = at::embedding(token_, input_ids, spec_.pad_token_id);
  // The sums run in the order of `transformers`, in place: `hidden` is this function's own.
  if (spec_.num_token_types > 0) {
    const auto types = inputs.tensors.find("token_type_ids");
    hidden.add_(types == inputs.tensors.end() ? token_type_.select(0, 0) : at::embedding(token_type_, types->second));
  }
  if (spec_.positions_follow_padding) {
    hidden.add_(at::embedding(position_, positions_after_padding(input_ids, spec_.pad_token_id), spec_.pad_token_id));
  } else {
    hidden.add_(position_.narrow(0, 0, input_ids.size(1)));
  }
  if (spec_.has_norm) hidden = norm_.forward(hidden);
  if (context.is_training) {
    const LayerPlace place{RandomDomain::kBackbone, plan().index};
    hidden = dropout(hidden, spec_.dropout, dropout_key(context, place, DropoutSite::kEmbedding));
  }
  carry["hidden"] = hidden;
}

void EmbeddingLayer::visit_weights(const WeightVisitor& visit) {
  visit("token.weight", token_, {spec_.vocab_size, spec_.width});
  visit("position.weight", position_, {spec_.num_positions, spec_.width});
  if (spec_.num_token_types > 0) visit("token_type.weight", token_type_, {spec_.num_token_types, spec_.width});
  if (spec_.has_norm) model::visit_weights("norm", norm_, visit);
}

void EmbeddingLayer::visit_linears(const std::function<void(const std::string& role, Linear& linear)>& /*visit*/) {}

}  // namespace espalier::model
