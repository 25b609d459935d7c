// SPDX-License-Identifier: Apache-2.0
// B batch, T tokens, D width, C labels
#include "model/head_layer.h"

#include <ATen/ATen.h>

#include <utility>

#include "model/dropout.h"

namespace espalier::model {

namespace {

/// Mean over the attended tokens in fp32; a row without any gives zeros.
at::Tensor mean_over_tokens(const at::Tensor& hidden, const NamedTensors& tensors) {
  const auto mask = tensors.find("attention_mask");
  if (mask == tensors.end()) return hidden.mean(1, /*keepdim=*/false, at::kFloat);
  const auto attended = mask->second.to(at::kFloat).unsqueeze(1);        // [B, 1, T]
  const auto sum = at::bmm(attended, hidden.to(at::kFloat)).squeeze(1);  // [B, D]
  return sum / attended.sum(-1).clamp_min_(1);
}

}  // namespace

HeadLayer::HeadLayer(LayerPlan plan)
    : Layer(std::move(plan)),
      spec_(*this->plan().head),
      dense_(spec_.width, spec_.width, /*bias_wanted=*/true),
      classifier_(spec_.width, spec_.num_labels, /*bias_wanted=*/true) {}

void HeadLayer::forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const {
  const auto& hidden = carry.at("hidden");
  const LayerPlace place{RandomDomain::kHead, plan().index};
  const auto drop = [&](const at::Tensor& x, DropoutSite site) {
    return context.is_training ? dropout(x, spec_.dropout, dropout_key(context, place, site)) : x;
  };
  auto pooled = spec_.pooling == Pooling::kMean ? mean_over_tokens(hidden, inputs.tensors)
                                                : hidden.select(1, 0).to(at::kFloat);  // [B, D]
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

}  // namespace espalier::model
