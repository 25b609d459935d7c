// SPDX-License-Identifier: Apache-2.0
// A transformer block as a link of the chain: replaces "hidden" [B, T, D].
#pragma once

#include <utility>

#include "model/slice.h"

namespace espalier::model {

class BlockLayer : public Layer {
 public:
  explicit BlockLayer(LayerPlan plan)
      : Layer(std::move(plan)), block_(*this->plan().block, {RandomDomain::kBackbone, this->plan().index}) {}

  void forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const override {
    auto& hidden = carry.at("hidden");
    hidden =
        block_.forward(hidden, {.attention_bias = inputs.attention_bias, .memory = {}, .memory_bias = {}}, context);
  }
  void visit_weights(const WeightVisitor& visit) override { block_.visit_weights(visit); }
  void visit_linears(const std::function<void(const std::string& role, Linear& linear)>& visit) override {
    block_.visit_linears(visit);
  }
  [[nodiscard]] TransformerBlock* block() override { return &block_; }

 private:
  TransformerBlock block_;
};

}  // namespace espalier::model
