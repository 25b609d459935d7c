// SPDX-License-Identifier: Apache-2.0
// B batch, T tokens, N prompts, D width, C labels
#include "model/head_layer.h"

#include <ATen/ATen.h>

#include <utility>

#include "common/error.h"
#include "model/dropout.h"

namespace espalier::model {

namespace {

/// Mean over the attended tokens from `first` on in fp32; a row without any gives zeros. mask [B, T] or undefined.
at::Tensor mean_over_tokens(const at::Tensor& whole, std::int64_t first, const at::Tensor& mask) {
  const at::Tensor hidden = whole.slice(1, first);
  if (!mask.defined()) return hidden.mean(1, /*keepdim=*/false, at::kFloat);
  const auto attended = mask.slice(1, first).to(at::kFloat).unsqueeze(1);  // [B, 1, T]
  const auto sum = at::bmm(attended, hidden.to(at::kFloat)).squeeze(1);    // [B, D]
  return sum / attended.sum(-1).clamp_min_(1);
}

/// Per row, the place of the last token for which `is_wanted` [B, T] holds; -1 where there is none.
at::Tensor last_place(const at::Tensor& is_wanted) {
  const auto places = at::arange(is_wanted.size(1), is_wanted.options().dtype(at::kLong));
  return at::where(is_wanted, places, at::full_like(places, -1)).amax(1);  // [B]
}

/// hidden [B, T, D] -> [B, D], row b at place[b].
at::Tensor select_places(const at::Tensor& hidden, const at::Tensor& place) {
  const auto rows = at::arange(hidden.size(0), place.options());
  return hidden.index({rows, place}).to(at::kFloat);
}

/// Prompts in front of hidden [B, N + T, D] are tokens like others; a decoder's has none.
at::Tensor pool(const HeadSpec& spec, const at::Tensor& hidden, bool is_decoder, const StageInputs& inputs) {
  const auto num_prompts = is_decoder ? 0 : inputs.num_prompts;
  const auto found = inputs.tensors.find("attention_mask");
  const at::Tensor mask =
      found == inputs.tensors.end() ? at::Tensor() : found->second.slice(1, inputs.num_prompts - num_prompts);
  switch (spec.pooling) {
    case Pooling::kFirstToken:
      return hidden.select(1, 0).to(at::kFloat);
    case Pooling::kMean:
      return mean_over_tokens(hidden, spec.first_pooled, mask);
    case Pooling::kLastToken: {
      if (mask.defined()) return select_places(hidden, last_place(mask.ne(0)).clamp_min(0));
      const auto place = last_place(inputs.tensors.at("input_ids").ne(spec.pad_token_id));
      return select_places(hidden, (place + num_prompts).clamp_min(0));
    }
    case Pooling::kEndOfSequence: {
      const auto place = last_place(inputs.tensors.at("input_ids").eq(spec.eos_token_id));  // prepare() saw to it
      return select_places(hidden, place + num_prompts);
    }
  }
  throw InternalError("pool: unknown kind of pooling");
}

}  // namespace

HeadLayer::HeadLayer(LayerPlan plan)
    : Layer(std::move(plan)),
      spec_(*this->plan().head),
      dense_(spec_.width, spec_.width, /*bias_wanted=*/true),
      classifier_(spec_.width, spec_.num_labels, spec_.has_bias) {}

void HeadLayer::forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const {
  const auto& hidden = carry.at("hidden");
  const LayerPlace place{RandomDomain::kHead, plan().index};
  const auto drop = [&](const at::Tensor& x, DropoutSite site) {
    return context.is_training ? dropout(x, spec_.dropout, context, place, site) : x;
  };
  auto pooled = pool(spec_, hidden, plan().stack == Stack::kDecoder, inputs);  // [B, D]
  if (spec_.drops_pooled) pooled = drop(pooled, DropoutSite::kPooled);
  if (spec_.has_dense) pooled = at::tanh(dense_.forward(pooled, context));
  carry["logits"] = classifier_.forward(drop(pooled, DropoutSite::kClassifier), context);
}

void HeadLayer::visit_weights(const WeightVisitor& visit) {
  visit_linears([&](const std::string& role, Linear& linear) { model::visit_weights(role, linear, visit); });
}

void HeadLayer::visit_linears(const std::function<void(const std::string& role, Linear& linear)>& visit) {
  if (spec_.has_dense) visit("dense", dense_);
  visit("classifier", classifier_);
}

void LanguageModelHeadLayer::forward(Carry& carry, const StageInputs& inputs, const ForwardContext& /*context*/) const {
  const auto hidden = without_prompts(carry.at("hidden"), plan(), inputs);  // [B, T, D]
  const auto scaled = spec_.input_scale == 1 ? hidden : hidden * spec_.input_scale;
  auto logits = at::linear(scaled, weight_.to(hidden.scalar_type()));
  if (spec_.has_bias) logits = logits + bias_.to(hidden.scalar_type());
  carry["logits"] = logits;
}

void LanguageModelHeadLayer::visit_weights(const WeightVisitor& visit) {
  visit("output.weight", weight_, {spec_.num_labels, spec_.width});
  if (!spec_.has_bias) return;
  using Shape = std::vector<std::int64_t>;
  visit("output.bias", bias_, spec_.stores_bias_row ? Shape{1, spec_.num_labels} : Shape{spec_.num_labels});
}

}  // namespace espalier::model
