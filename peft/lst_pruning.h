// SPDX-License-Identifier: Apache-2.0
// Starts the side layers of LST as pruned copies of the backbone's (Sung, Cho, Bansal, NeurIPS 2022, section 3.3): one
// walk over all of them with a running set of kept columns, each linear keeping its rows of largest importance.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "peft/method.h"

namespace espalier::peft {

/// The `count` indices of largest score, ascending; of equal scores the smaller index is kept. scores [n], any float
/// type. Requires: 0 <= count <= n.
std::vector<std::int64_t> keep_largest(const at::Tensor& scores, std::int64_t count);

/// Role of a layer -> pruned fp32 tensor.
using PrunedLayer = std::map<std::string, at::Tensor>;

struct Pruning {
  std::int64_t reduction = 8;  ///< divides all widths
  bool by_head = false;        ///< as many rows of every attention head, in place of the largest over all
};

/// The side blocks and final norms, by chain index, of the layers of `range` for which `is_wanted`; every layer is
/// walked, since each sublayer's kept rows are the next one's columns: `kept` holds those of the layer below the range,
/// and afterwards those of its last. The first layer of the chain starts from its own. `importance` scores what `read`
/// gives (the weight itself, or its Fisher information). Tables of relative positions are not among the roles: heads
/// are not pruned.
std::map<std::uint64_t, PrunedLayer> prune_layers(const model::Backbone& backbone, model::LayerRange range,
                                                  const Pruning& pruning, const WeightReader& read,
                                                  const WeightReader& importance,
                                                  const std::function<bool(const model::LayerPlan&)>& is_wanted,
                                                  std::vector<std::int64_t>& kept);

}  // namespace espalier::peft
