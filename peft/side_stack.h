// SPDX-License-Identifier: Apache-2.0
// Side networks of one shape that climb together: stacks of their weights and of their states, [K, ...], so that K
// small matrix products are one grouped one.
#pragma once

#include <cstddef>
#include <vector>

#include "model/carry.h"
#include "peft/side_network.h"

namespace espalier::peft {

/// One of them can climb for both.
bool have_one_shape(SideNetwork& one, SideNetwork& other);

/// Puts stacks of the networks' weights in the slots of the first, for as long as it lives; gradients flow to each
/// network's own. Nothing for a single network. Requires: networks of one shape.
class StackedWeights {
 public:
  explicit StackedWeights(const std::vector<SideNetwork*>& networks);
  ~StackedWeights();
  StackedWeights(const StackedWeights&) = delete;
  StackedWeights& operator=(const StackedWeights&) = delete;

 private:
  SideNetwork& first_;
  std::vector<at::Tensor> own_;
};

/// Carries of K networks as one of their stacks, [K, ...]; what they share, and a single network's, as it is.
model::Carry stack(const std::vector<model::Carry>& carries);
/// The carry of each of `num_networks`.
std::vector<model::Carry> unstack(const model::Carry& stacked, std::size_t num_networks);

}  // namespace espalier::peft
