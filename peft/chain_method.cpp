// SPDX-License-Identifier: Apache-2.0
#include "peft/chain_method.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <utility>

#include "peft/autograd_pass.h"

namespace espalier::peft {

model::CarryPlan ChainMethod::plan_carry(int first_layer, const model::BatchShape& shape) const {
  model::BatchShape whole = shape;
  if (shape.cached_tokens == 0) whole.tokens += slice_.num_prompts();
  auto plan = model::plan_chain_carry(slice_.backbone(), first_layer, whole, slice_.options().compute_type);
  for (auto& entry : plan) {
    entry.needs_gradient = entry.name == "position_bias" ? options_.trains_position_bias
                                                         : options_.first_trained_layer < origin_of(entry, first_layer);
  }
  return plan;
}

int ChainMethod::origin_of(const model::CarryEntry& entry, int first_layer) const {
  if (entry.name != "memory") return first_layer;
  const auto& chain = slice_.backbone().chain;
  const auto decoder =
      std::find_if(chain.begin(), chain.end(), [](const auto& layer) { return layer.stack == model::Stack::kDecoder; });
  return static_cast<int>(decoder - chain.begin());
}

StageResult ChainMethod::forward(model::Carry incoming, const model::StageInputs& inputs,
                                 const model::ForwardContext& context, bool keeps_pass) {
  const model::LayerRange range = slice_.range();
  model::Carry leaves;
  if (keeps_pass && range.first > 0) {
    leaves = make_leaves(incoming, plan_carry(range.first, {}));
  }
  model::ForwardContext frozen_context = context;
  frozen_context.is_training = context.is_training && options_.has_frozen_dropout;

  model::Carry carry = std::move(incoming);
  for (const auto& layer : slice_.layers()) {
    const bool is_frozen = static_cast<int>(layer->plan().index) < options_.first_trained_layer;
    const at::AutoGradMode grad_mode(keeps_pass && !is_frozen);
    layer->forward(carry, inputs, is_frozen ? frozen_context : context);
    if (layer->plan().embedding || layer->plan().patch_embedding) {
      // Trained tables are fp32; from here on every weight is cast to the type of what it meets.
      carry.at("hidden") = carry.at("hidden").to(slice_.options().compute_type);
    }
  }

  model::Carry outputs;
  if (range.end < slice_.backbone().num_layers()) {
    for (const auto& entry : plan_carry(range.end, {})) {
      outputs.emplace(entry.name, carry.at(entry.name));
    }
  } else {
    outputs.emplace("logits", carry.at("logits"));
  }
  StageResult result = finish_stage(std::move(outputs), std::move(leaves), trained_, keeps_pass);
  if (!keeps_pass) {
    // Behind the head, of the words; between stages it is there already.
    result.outgoing.emplace("hidden",
                            model::without_prompts(carry.at("hidden"), slice_.backbone().chain.back(), inputs));
  }
  return result;
}

}  // namespace espalier::peft
