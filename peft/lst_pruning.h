// SPDX-License-Identifier: Apache-2.0
// Starts the side blocks of LST as pruned copies of the backbone's: one walk over all blocks with a running set of kept
// columns, each linear keeping its rows of largest importance (here the weight's magnitude).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/backbone.h"

namespace espalier::peft {

/// The `count` indices of largest score, ascending; of equal scores the smaller index is kept. scores [n], any float
/// type.
std::vector<std::int64_t> keep_largest(const at::Tensor& scores, std::int64_t count);

/// A weight of the backbone, in any float type. Called for blocks that no slice of this process holds, too.
using WeightReader = std::function<at::Tensor(const model::LayerPlan& layer, const std::string& role)>;

/// Role of a block -> pruned fp32 tensor.
using PrunedBlock = std::map<std::string, at::Tensor>;

/// The side blocks, by chain index, of the blocks for which `is_wanted`; every block is walked, since each sublayer's
/// kept rows are the next one's columns. Post-norm encoder blocks without gate. Requires: `reduction` divides all
/// widths.
std::map<std::uint64_t, PrunedBlock> prune_blocks(const model::Backbone& backbone, std::int64_t reduction,
                                                  const WeightReader& read,
                                                  const std::function<bool(const model::LayerPlan&)>& is_wanted);

}  // namespace espalier::peft
