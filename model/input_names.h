// SPDX-License-Identifier: Apache-2.0
// Which arrays a model reads of a batch, under their `transformers` names.
#pragma once

#include <array>
#include <set>
#include <string>

#include "model/backbone.h"

namespace espalier::model {

/// Those of a model that reads images behind its text: features [B, V, F], boxes [B, V, 4] as x1, x2, y1, y2, and which
/// image and which of its objects each token is [B, V].
inline constexpr std::array<const char*, 4> kVisualInputs = {"vis_feats", "vis_boxes", "img_order_ids",
                                                             "obj_order_ids"};

/// Labels not among them: a loss reads those. An array that the model would ignore is not there.
std::set<std::string> input_names(const Backbone& backbone);

}  // namespace espalier::model
