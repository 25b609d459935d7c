// SPDX-License-Identifier: Apache-2.0
// A transformer block as a link of the chain: replaces "hidden" [B, T, D].
#pragma once

#include <ATen/ops/constant_pad_nd.h>

#include <algorithm>
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
  /// `domain`: whose dropout it draws, the backbone's or a side network's.
  explicit BlockLayer(LayerPlan plan, RandomDomain domain = RandomDomain::kBackbone)
      : Layer(std::move(plan)), block_(*this->plan().block, {domain, this->plan().index}) {}

  void forward(Carry& carry, const StageInputs& inputs, const ForwardContext& context) const override {
    auto& hidden = carry.at("hidden");
    if (block_.spec().relative_bias) {
      const bool goes_on = context.cache != nullptr && block_.spec().is_causal;
      // Distances are between words: visual tokens have none.
      const auto num_visual = plan().stack == Stack::kDecoder ? 0 : std::min(inputs.num_visual_tokens, hidden.size(-2));
      const auto bias =
          block_.relative_position_bias(hidden.size(-2) - num_visual, goes_on ? context.cache->num_tokens() : 0);
      carry["position_bias"] = num_visual == 0 ? bias : at::constant_pad_nd(bias, {0, num_visual, 0, num_visual});
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
