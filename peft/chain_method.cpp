// SPDX-License-Identifier: Apache-2.0
#include "peft/chain_method.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <utility>

#include "peft/autograd_pass.h"

namespace espalier::peft {

model::CarryPlan ChainMethod::plan_carry(int first_layer, const model::BatchShape& shape) const {
  return {{.name = "hidden",
           .sizes = {shape.rows, shape.tokens, slice_.backbone().width},
           .dtype = slice_.options().compute_type,
           .needs_gradient = options_.first_trained_layer < first_layer}};
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
    if (layer->plan().kind == model::LayerKind::kEmbedding) {
      // Trained tables are fp32; from here on every weight is cast to the type of what it meets.
      carry.at("hidden") = carry.at("hidden").to(slice_.options().compute_type);
    }
  }

  const std::string output = range.end < slice_.backbone().num_layers() ? "hidden" : "logits";
  StageResult result = finish_stage({{output, carry.at(output)}}, std::move(leaves), trained_, keeps_pass);
  if (!keeps_pass) {
    result.outgoing.emplace("hidden", carry.at("hidden"));
  }
  return result;
}

}  // namespace espalier::peft
