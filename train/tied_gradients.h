// SPDX-License-Identifier: Apache-2.0
// A tied weight trains on the sum of the gradients of all its places. They are added in chain order, one after the
// other from stage to stage, so that the sum has the same bits wherever the chain is cut.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <string>
#include <vector>

#include "dist/mesh.h"

namespace espalier::train {

class TiedGradients {
 public:
  /// `names`: of the gradients that add() takes, in chain order; a name that comes again, here or on another stage, is
  /// another place of the same tensor. Collective: every stage of the replica.
  TiedGradients(dist::Mesh& mesh, const std::vector<std::string>& names);

  /// Puts the sum over all places of a tensor into each of them; they may share its memory. What crosses between stages
  /// is counted with the label "tied_gradient". Collective: every stage of the replica. Requires: all defined, one for
  /// each of `names`.
  void add(std::vector<at::Tensor>& gradients);

 private:
  /// A tensor with several places of which this stage has some.
  struct Tie {
    std::vector<int> stages;          ///< that have places, ascending
    std::vector<std::size_t> places;  ///< of this stage
  };

  dist::Mesh& mesh_;
  std::vector<Tie> ties_;  ///< in an order that all stages share
};

}  // namespace espalier::train
