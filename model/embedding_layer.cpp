// SPDX-License-Identifier: Apache-2.0
// B batch, T tokens, N prompts before them, D width
#include "model/embedding_layer.h"

#include <ATen/ATen.h>

#include <utility>

#include "common/error.h"
#include "model/attention_cache.h"
#include "model/dropout.h"

namespace espalier::model {

namespace {

/// Row 0 for padding is `pad`; real tokens count on from there.
at::Tensor positions_after_padding(const at::Tensor& ids, std::int64_t pad) {
  const auto is_token = ids.ne(pad).to(at::kLong);
  return is_token.cumsum(1).mul_(is_token).add_(pad);  // [B, T]
}

/// Attended tokens count from 0, the others stand at -1.
at::Tensor positions_of_attended(const at::Tensor& mask) {
  const auto is_attended = mask.ne(0).to(at::kLong);
  return is_attended.cumsum(1).mul_(is_attended).sub_(1);  // [B, T]
}

}  // namespace

EmbeddingLayer::EmbeddingLayer(LayerPlan plan) : Layer(std::move(plan)), spec_(*this->plan().embedding) {
  if (spec_.token_width > 0) projection_ = Linear(spec_.token_width, spec_.width, /*bias_wanted=*/false);
  norm_.epsilon = spec_.norm_epsilon;
  norm_.width = spec_.width;
  if (spec_.visual) visual_.emplace(*spec_.visual);
}

void EmbeddingLayer::forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const {
  const bool is_decoder = plan().stack == Stack::kDecoder;
  if (is_decoder) carry["memory"] = carry.at("hidden");
  const auto& ids = inputs.tensors.at(is_decoder ? "decoder_input_ids" : "input_ids");  // [B, T]
  const auto num_prompts = is_decoder ? 0 : inputs.num_prompts;
  auto hidden = embed_tokens(ids, is_decoder ? at::Tensor() : inputs.prompts, context);  // [B, N + T, D]
  // The sums run in the order of `transformers`, in place: `hidden` is this function's own.
  if (spec_.num_token_types > 0) {
    const auto types = inputs.tensors.find("token_type_ids");
    hidden.add_(types == inputs.tensors.end() ? token_type_.select(0, 0) : at::embedding(token_type_, types->second));
  }
  if (spec_.positions != Positions::kNone) hidden.add_(embed_positions(ids, num_prompts, inputs.tensors, context));
  if (visual_ && inputs.num_visual_tokens > 0 && ids.size(1) > 0) {
    hidden = at::cat({hidden, embed_visual(inputs, context).to(hidden.scalar_type())}, 1);
  }
  if (spec_.has_norm) hidden = norm_.forward(hidden);
  if (context.is_training) {
    const LayerPlace place{RandomDomain::kBackbone, plan().index};
    hidden = dropout(hidden, spec_.dropout, context, place, DropoutSite::kEmbedding);
  }
  carry["hidden"] = hidden;
}

at::Tensor EmbeddingLayer::embed_visual(const StageInputs& inputs, const ForwardContext& context) const {
  return visual_->forward(inputs.tensors, token_, context);
}

at::Tensor EmbeddingLayer::embed_tokens(const at::Tensor& ids, const at::Tensor& prompts,
                                        const ForwardContext& context) const {
  auto tokens = at::embedding(token_, ids, spec_.pad_token_id);
  if (spec_.token_scale != 1) tokens = tokens * spec_.token_scale;
  if (prompts.defined()) {
    tokens = at::cat({prompts.to(tokens.scalar_type()).unsqueeze(0).expand({ids.size(0), -1, -1}), tokens}, 1);
  }
  return spec_.token_width > 0 ? projection_.forward(tokens, context) : tokens;
}

at::Tensor EmbeddingLayer::embed_positions(const at::Tensor& ids, std::int64_t num_prompts, const NamedTensors& tensors,
                                           const ForwardContext& context) const {
  const auto num_tokens = num_prompts + ids.size(1);
  const bool goes_on = context.cache != nullptr && plan().stack != Stack::kEncoder;
  const auto first = spec_.position_offset + (goes_on ? context.cache->num_tokens() : 0);
  switch (spec_.positions) {
    case Positions::kInOrder:
      if (const auto given = tensors.find("position_ids"); given != tensors.end()) {
        return at::embedding(position_, given->second + spec_.position_offset);
      }
      return position_.narrow(0, first, num_tokens);
    case Positions::kFollowPadding:
      // Before prompts there are no ids to tell padding by: as in `transformers`, every place counts then.
      if (num_prompts > 0) return position_.narrow(0, spec_.pad_token_id + 1, num_tokens);
      return at::embedding(position_, positions_after_padding(ids, spec_.pad_token_id), spec_.pad_token_id);
    case Positions::kFollowMask: {
      const auto mask = tensors.find("attention_mask");
      if (mask == tensors.end()) return position_.narrow(0, first, num_tokens);
      // With a cache the mask covers all tokens, the ids only the last.
      const auto positions = positions_of_attended(mask->second).slice(1, mask->second.size(1) - num_tokens);
      return at::embedding(position_, positions + spec_.position_offset);
    }
    case Positions::kNone:
      break;
  }
  throw InternalError("embed_positions: a table without positions");
}

void EmbeddingLayer::visit_weights(const WeightVisitor& visit) {
  visit("token.weight", token_, {spec_.vocab_size, spec_.token_width > 0 ? spec_.token_width : spec_.width});
  if (spec_.token_width > 0) model::visit_weights("projection", projection_, visit);
  if (spec_.positions != Positions::kNone) visit("position.weight", position_, {spec_.num_positions, spec_.width});
  if (spec_.num_token_types > 0) visit("token_type.weight", token_type_, {spec_.num_token_types, spec_.width});
  if (spec_.has_norm) model::visit_weights("norm", norm_, visit);
  if (visual_) visual_->visit_weights(visit);
}

void EmbeddingLayer::visit_linears(const std::function<void(const std::string& role, Linear& linear)>& /*visit*/) {}

}  // namespace espalier::model
