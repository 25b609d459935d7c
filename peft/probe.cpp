// SPDX-License-Identifier: Apache-2.0
#include "peft/probe.h"

#include "peft/trained_set.h"

namespace espalier::peft {

ProbeMethod::ProbeMethod(model::StageSlice& slice, const model::WeightSource& weights)
    : ChainMethod(slice,
                  {.first_trained_layer = slice.backbone().visual() != nullptr ? 0 : slice.backbone().num_layers() - 1,
                   .has_frozen_dropout = false}) {
  for (const auto& layer : slice.layers()) {
    train_task_weights(slice, *layer, weights, trained());
  }
}

Route ProbeMethod::route() const {
  return slice().backbone().visual() != nullptr ? Route::kThrough : Route::kBeside;
}

}  // namespace espalier::peft
