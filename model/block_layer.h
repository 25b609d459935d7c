// SPDX-License-Identifier: Apache-2.0
// A transformer block as a link of the chain: replaces "hidden" [B, T, D].
#pragma once

#include <utility>

#include "model/attention_cache.h"
#include "model/slice.h"

namespace espalier::model {

/// What the block of `plan` reads of carry and micro-batch.
inline BlockInputs block_inputs(const LayerPlan& plan, const Carry& carry, const StageInputs& inputs) {
  BlockInputs block;
  if (plan.stack == Stack::kDecoder) {
    block.attention_bias = inputs.decoder_attention_bias;
    block.memory = carry.at("memory");
    block.memory_bias = inputs.attention_bias;
  } else {
    block.attention_bias = inputs.attention_bias;
  }
  if (plan.block->has_position_bias) block.position_bias = carry.at("position_bias");
  if (plan.block->rotary) {
    block.rotary_cos = inputs.rotary_cos;
    block.rotary_sin = inputs.rotary_sin;
  }
  return block;
}

class BlockLayer : public Layer {
 public:
  explicit BlockLayer(LayerPlan plan)
      : Layer(std::move(plan)), block_(*this->plan().block, {RandomDomain::kBackbone, this->plan().index}) {}

  void forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const override {
    auto& hidden = carry.at("hidden");
    if (block_.spec().relative_bias) {
      const bool goes_on = context.cache != nullptr && block_.spec().is_causal;
      carry["position_bias"] = block_.relative_position_bias(hidden.size(1), goes_on ? context.cache->num_tokens() : 0);
    }
    hidden = block_.forward(hidden, block_inputs(plan(), carry, inputs), context);
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
