// SPDX-License-Identifier: Apache-2.0
// Sums the gradients of the trained tensors over micro-batches and replicas. `exact` adds them along one fixed binary
// tree over the micro-batches of the global batch, so that the sum has the same bits for any number of replicas.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "common/options.h"
#include "dist/communicator.h"
#include "dist/mesh.h"

namespace espalier::dist {

struct GradientSyncConfig {
  std::string reduction = "exact";      ///< exact | fast
  std::string strategy = "bucketed";    ///< naive | bucketed
  std::int64_t bucket_bytes = 4 << 20;  ///< of gradient in one message
};
/// Keys "gradient_sync.*".
void describe(OptionTable& table, GradientSyncConfig& config);

/// Two verbs: ready() as each micro-batch's gradients arrive, finish() once. Gradients of one step of one stage.
/// Naive and bucketed give equal bits with `exact`; the naive one is the oracle. One replica communicates nothing.
/// Collective: between begin() and finish() no other collective on `replicas`: a bucket leaves at another time on every
/// rank.
/// Throws: InternalError, every verb, out of its order or for a gradient of another shape; CommError.
class GradientSync {
 public:
  virtual ~GradientSync() = default;

  /// Starts a step in which this replica owns `range` of `num_micro_batches`. An empty range is legal: finish() still
  /// must be called. Requires: range = plan_micro_batches(num_micro_batches, replicas, this replica), so that each
  /// replica knows all ranges.
  virtual void begin(int num_micro_batches, MicroBatchRange range) = 0;

  /// The gradient that `micro_batch` (index in the global batch) contributes to trained tensor `index`. Undefined =
  /// zero contribution. Micro-batches of one tensor arrive in ascending order; one that is left out contributes
  /// nothing. Owns: keeps the tensor until it is summed; nobody writes to it.
  virtual void ready(int index, int micro_batch, at::Tensor gradient) = 0;

  /// The sums, one per trained tensor, in order, fp32; zeros, of either sign, where no micro-batch of any replica
  /// contributed. The caller owns them. Collective: every replica of the stage. Bytes: `exact` gives one gradient per
  /// canonical tree node (dist/exact_tree.h) of the range that has most of them, which is one for equal power-of-two
  /// shares; `fast` gives one. They are counted with the label "gradient".
  virtual std::vector<at::Tensor> finish() = 0;
};

/// `shapes_like`: the trained tensors (shape, device); they are not kept. Collective: no.
/// Owns: nothing; `replicas` outlives it. Throws: ConfigError for an unknown reduction or strategy.
std::unique_ptr<GradientSync> make_gradient_sync(const GradientSyncConfig& config, Communicator& replicas,
                                                 const std::vector<at::Tensor>& shapes_like);

}  // namespace espalier::dist
