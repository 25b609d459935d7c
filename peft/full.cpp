// SPDX-License-Identifier: Apache-2.0
#include "peft/full.h"

#include "peft/trained_set.h"

namespace espalier::peft {

FullMethod::FullMethod(model::StageSlice& slice, const model::WeightSource& weights)
    : ChainMethod(slice, {.first_trained_layer = 0, .trains_position_bias = true}) {
  const Copies copies = find_copies(slice.backbone(), weights);
  for (const auto& layer : slice.layers()) {
    train_layer(slice, *layer, weights, copies, trained());
  }
}

}  // namespace espalier::peft
