// SPDX-License-Identifier: Apache-2.0
// Linears of the blocks, chosen by role or one by one: what low-rank factors (LoRA, ROSA) are put on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/slice.h"

namespace espalier::peft {

/// One chosen linear of one block.
struct LinearTarget {
  std::string role;          ///< "attention.query"
  std::uint64_t linear = 0;  ///< place among the block's linears: tells the dropout sites of a block apart
  std::int64_t in_features = 0, out_features = 0;
  [[nodiscard]] std::int64_t smaller_width() const { return in_features < out_features ? in_features : out_features; }
};

/// `key`: the option that holds `targets`, each a role ("attention.query", in every block that has it) or the name of
/// one linear ("encoder.3.attention.query"). Throws: ConfigError for a repeated target and for one that no block of the
/// backbone has (listing the roles there are).
void check_targets(const std::string& key, const std::vector<std::string>& targets, const model::Backbone& backbone);

/// The targets that a block of `spec`, called `layer_name`, has; in the block's own order.
std::vector<LinearTarget> plan_targets(const std::vector<std::string>& targets, const model::BlockSpec& spec,
                                       const std::string& layer_name);

/// Chain index of the first layer that trains when every block does: the first block, or below it a visual embedding.
int first_trained_by_blocks(const model::Backbone& backbone);

}  // namespace espalier::peft
