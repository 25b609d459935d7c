// SPDX-License-Identifier: Apache-2.0
// Interprets a schedule on one rank: receives a micro-batch's carry, runs the method on the slice, sends it on, and the
// gradients back. It knows neither what the method trains nor how gradients are summed.
// B rows of a micro-batch, C labels, T tokens, V vocabulary
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "dist/mesh.h"
#include "dist/schedule.h"
#include "model/attention_cache.h"
#include "model/slice.h"
#include "peft/method.h"

namespace espalier::train {

/// One micro-batch as every stage of a replica sees it.
struct MicroBatch {
  int index = 0;  ///< in the global batch
  model::NamedTensors inputs;
  model::BatchShape shape;
};

/// Objective, its logits [B, C] or [B, T, V], inputs of the micro-batch (with kTeacherLogits where an objective learns
/// from the backbone's predictions) -> scalar loss, already divided by what the whole global batch counts.
using LossFunction =
    std::function<at::Tensor(std::size_t objective, const at::Tensor& logits, const model::NamedTensors& inputs)>;

/// What the gradients of the logits are multiplied by, and those of the trained tensors divided by again: 1, but in
/// fp16 the power of two that brings gradients of at most `largest` to at most 1. The loss is a mean over the global
/// batch, so the gradient of a logit is (p - y) / targets: with thousands of tokens most of it lies below fp16's least
/// number, 6e-8, and is lost as 0 at the first cast. Begun at 1 it survives; a power of two rounds nothing. Every rank
/// knows what the global batch counts, so it is the same on all stages of any layout.
double gradient_scale(at::ScalarType compute_type, double largest);

/// Called with each trained tensor's gradient of each micro-batch, undefined where the graph did not reach it.
using MicroBatchSink = std::function<void(int micro_batch, int index, at::Tensor gradient)>;

/// Called on the last stage with what the heads wrote (logits_name() of each objective) and read ("hidden").
using OutputSink = std::function<void(const MicroBatch& micro_batch, const model::Carry& outgoing)>;

/// What fails on one rank throws on that rank alone: CommError where a transfer fails, ConfigError for inputs that the
/// model does not have (StageSlice::prepare(), Layer::forward()), NumericError and InternalError as the method's
/// forward and backward. The other ranks then wait, so whoever catches it ends the job (dist/abort.h).
class StageExecutor {
 public:
  /// Owns: nothing; mesh, slice and method outlive it.
  StageExecutor(dist::Mesh& mesh, model::StageSlice& slice, peft::Method& method);

  /// Forward and backward of this replica's micro-batches in the order of `kind`. Returns the losses in that order,
  /// of each objective (last stage; else empty), finite or not. Without `is_training` no dropout is drawn.
  /// `gradient_scales`: gradient_scale() of each objective; empty: 1 of all. Losses and `sink` do not see them.
  /// Collective: the stages of this replica, with the same micro-batches.
  /// Stream: the host waits for the losses once, at the end. Throws: as said above.
  std::vector<std::vector<double>> train_step(dist::ScheduleKind kind, const std::vector<MicroBatch>& micro_batches,
                                              const RandomKey& key, const LossFunction& loss,
                                              const MicroBatchSink& sink, bool is_training = true,
                                              const std::vector<double>& gradient_scales = {});

  /// Forward only, without dropout, of `count` micro-batches that `make` gives one by one.
  /// Collective: the stages of this replica, with the same micro-batches. Throws: as said above.
  void evaluate(std::size_t count, const std::function<MicroBatch(std::size_t)>& make, const OutputSink& sink);

  /// One step of generation: the next tokens of all rows through the stages, reading and filling this stage's cache.
  /// Returns what the last stage computed there, nothing elsewhere. Collective: the stages of this replica, with the
  /// same tokens. Requires: of a causal stack one new token a row once `cache` holds some. Throws: as said above.
  model::Carry generate_step(const MicroBatch& micro_batch, model::AttentionCache& cache);

 private:
  struct InFlight {
    std::unique_ptr<peft::StagePass> pass;
    model::Carry output_gradients;
  };

  [[nodiscard]] model::Carry receive(const model::CarryPlan& plan, bool gradients, int peer, dist::Channel channel);
  void send(const model::CarryPlan& plan, bool gradients, const model::Carry& carry, int peer, dist::Channel channel);
  [[nodiscard]] peft::StageResult run_forward(const MicroBatch& micro_batch, const model::ForwardContext& context,
                                              bool keeps_pass);
  /// On the last stage: the gradients of the logits; the loss of each objective goes to the end of `losses`.
  [[nodiscard]] model::Carry run_loss(const MicroBatch& micro_batch, const model::Carry& outgoing,
                                      const LossFunction& loss, const std::vector<double>& scales,
                                      std::vector<at::Tensor>& losses) const;
  void run_backward(const MicroBatch& micro_batch, InFlight& kept, const std::vector<double>& scales,
                    const MicroBatchSink& sink);
  /// Lets go of the sends that are done; waits for the oldest until at most `most` are left.
  void settle_sends(std::size_t most);

  dist::Mesh& mesh_;
  model::StageSlice& slice_;
  peft::Method& method_;
  std::vector<std::string> logits_;        ///< by objective
  std::vector<std::size_t> objective_of_;  ///< of each trained tensor
  std::vector<dist::Work> sends_;          ///< on their way, in order; each keeps its tensor alive
};

}  // namespace espalier::train
