// SPDX-License-Identifier: Apache-2.0
// The end of a stack: norm, dropout and projection of "hidden" [B, T, D], each where the family has it.
#pragma once

#include <utility>

#include "model/dropout.h"
#include "model/slice.h"

namespace espalier::model {

/// Roles: norm.{weight,bias}, projection.weight.
class FinalLayer : public Layer {
 public:
  /// `domain`: whose dropout it draws, the backbone's or a side network's.
  explicit FinalLayer(LayerPlan plan, RandomDomain domain = RandomDomain::kBackbone)
      : Layer(std::move(plan)), spec_(*this->plan().final), domain_(domain) {
    norm_ = {spec_.norm_kind, spec_.norm_epsilon, spec_.width, {}, {}};
    if (spec_.projected_width > 0) projection_ = Linear(spec_.width, spec_.projected_width, /*bias_wanted=*/false);
  }
  void forward(Carry& carry, const StageInputs& /*inputs*/, const ForwardContext& context) const override {
    auto& hidden = carry.at("hidden");  // [B, T, D]
    if (spec_.has_norm) hidden = norm_.forward(hidden);
    if (context.is_training && spec_.dropout > 0) {
      hidden = dropout(hidden, spec_.dropout, context, {domain_, plan().index}, DropoutSite::kFinal);
    }
    if (spec_.projected_width > 0) hidden = projection_.forward(hidden, context);
  }
  void visit_weights(const WeightVisitor& visit) override {
    if (spec_.has_norm) model::visit_weights("norm", norm_, visit);
    if (spec_.projected_width > 0) model::visit_weights("projection", projection_, visit);
  }
  void visit_linears(const std::function<void(const std::string& role, Linear& linear)>& /*visit*/) override {}

 private:
  FinalSpec spec_;
  RandomDomain domain_;
  Norm norm_;
  Linear projection_;
};

}  // namespace espalier::model
