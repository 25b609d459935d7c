// SPDX-License-Identifier: Apache-2.0
#include "peft/full.h"

#include <c10/util/accumulate.h>

#include "peft/trained_set.h"

namespace espalier::peft {

std::int64_t count_full(const model::Backbone& backbone) {
  std::int64_t count = 0;
  model::visit_stored_tensors(backbone, [&](const model::LayerPlan& /*layer*/, const model::StoredWeight& stored,
                                            const std::vector<std::int64_t>& shape) {
    count += stored.is_buffer || stored.is_task ? 0 : c10::multiply_integers(shape);
  });
  return count;
}

FullMethod::FullMethod(model::StageSlice& slice, const model::WeightSource& weights)
    : ChainMethod(slice, {.first_trained_layer = 0, .trains_position_bias = true}) {
  const Copies copies = find_copies(slice.backbone(), weights);
  for (const auto& layer : slice.layers()) {
    train_layer(slice, *layer, weights, copies, trained());
  }
}

}  // namespace espalier::peft
