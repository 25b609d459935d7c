// SPDX-License-Identifier: Apache-2.0
#include "peft/probe.h"

#include "peft/trained_set.h"

namespace espalier::peft {

ProbeMethod::ProbeMethod(model::StageSlice& slice, const model::WeightSource& weights)
    : ChainMethod(slice, {.first_trained_layer = slice.backbone().num_layers() - 1, .has_frozen_dropout = false}) {
  if (slice.has_task_head()) {
    train_layer(slice, *slice.layers().back(), weights, /*copies=*/{}, trained());
  }
}

}  // namespace espalier::peft
