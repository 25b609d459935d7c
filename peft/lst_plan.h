// SPDX-License-Identifier: Apache-2.0
// What the options of LST make of a backbone: the side network as a plan of its own, a chain of the same length with
// all widths divided.
#pragma once

#include <cstdint>
#include <vector>

#include "common/options.h"
#include "model/backbone.h"
#include "peft/method_config.h"

namespace espalier::peft {

/// Keys "peft.lst.*".
void describe(OptionTable& table, LstConfig& config);

struct LstPlan {
  /// By chain index as the backbone. Of embeddings and head only the place is used; a block that is dropped and a
  /// final layer without norm have nothing here.
  model::Backbone side;
  std::vector<bool> is_kept;  ///< by chain index: a side block stands beside this block
  bool has_ladders = true;
  bool has_gates = true;
  int last_tap_layer = -1;  ///< chain index of the last layer whose output is read: the backbone ends there
  [[nodiscard]] std::int64_t side_width() const { return side.width; }
};

/// Throws: ConfigError naming what does not divide, a layer that is not there, and a distill_weight with a pooled head.
LstPlan plan_lst(const LstConfig& config, const model::Backbone& backbone);

/// Trained scalars without the task head, gates of dropped layers included. Throws: as plan_lst().
std::int64_t count_lst(const LstConfig& config, const model::Backbone& backbone);

}  // namespace espalier::peft
