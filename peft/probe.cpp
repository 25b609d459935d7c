// SPDX-License-Identifier: Apache-2.0
#include "peft/probe.h"

#include <spdlog/fmt/fmt.h>

#include "common/error.h"
#include "peft/trained_set.h"

namespace espalier::peft {

ProbeMethod::ProbeMethod(model::StageSlice& slice, const model::WeightSource& weights)
    : ChainMethod(slice,
                  {.first_trained_layer = slice.backbone().visual() != nullptr ? 0 : slice.backbone().num_layers() - 1,
                   .has_frozen_dropout = false}) {
  if (slice.options().drop_path > 0 && slice.backbone().visual() == nullptr) {
    throw ConfigError(
        fmt::format("model.drop_path: expected 0 with peft.method=probe, whose backbone runs as in evaluation; found "
                    "{}; leave model.drop_path out",
                    slice.options().drop_path));
  }
  for (const auto& layer : slice.layers()) {
    train_task_weights(slice, *layer, weights, trained());
  }
}

Route ProbeMethod::route() const {
  return slice().backbone().visual() != nullptr ? Route::kThrough : Route::kBeside;
}

}  // namespace espalier::peft
