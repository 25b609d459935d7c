// SPDX-License-Identifier: Apache-2.0
// Interprets a schedule on one rank: receives a micro-batch's carry, runs the method on the slice, sends it on, and the
// gradients back. It knows neither what the method trains nor how gradients are summed.
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

/// Objective, its logits [B, ...], inputs of the micro-batch (with kTeacherLogits where an objective learns from the
/// backbone's predictions) -> scalar loss, already divided by what the whole global batch counts.
using LossFunction =
    std::function<at::Tensor(std::size_t objective, const at::Tensor& logits, const model::NamedTensors& inputs)>;

/// Called with each trained tensor's gradient of each micro-batch.
using MicroBatchSink = std::function<void(int micro_batch, int index, at::Tensor gradient)>;

/// Called on the last stage with what the heads wrote (logits_name() of each objective) and read ("hidden").
using OutputSink = std::function<void(const MicroBatch& micro_batch, const model::Carry& outgoing)>;

class StageExecutor {
 public:
  /// Owns: nothing; mesh, slice and method outlive it.
  StageExecutor(dist::Mesh& mesh, model::StageSlice& slice, peft::Method& method);

  /// Forward and backward of this replica's micro-batches in the order of `kind`. Returns the losses in that order,
  /// of each objective (last stage; else empty). Without `is_training` no dropout is drawn. Stream: the host waits for
  /// the losses once, at the end. Collective: the stages of this replica, with the same micro-batches.
  std::vector<std::vector<double>> train_step(dist::ScheduleKind kind, const std::vector<MicroBatch>& micro_batches,
                                              const RandomKey& key, const LossFunction& loss,
                                              const MicroBatchSink& sink, bool is_training = true);

  /// Forward only, without dropout, of `count` micro-batches that `make` gives one by one.
  /// Collective: the stages of this replica, with the same micro-batches.
  void evaluate(std::size_t count, const std::function<MicroBatch(std::size_t)>& make, const OutputSink& sink);

  /// One step of generation: the next tokens of all rows through the stages, reading and filling this stage's cache.
  /// Returns what the last stage computed there, nothing elsewhere. Collective: the stages of this replica, with the
  /// same tokens.
  model::Carry generate_step(const MicroBatch& micro_batch, model::AttentionCache& cache);

 private:
  /// A carry on its way: the Work and the tensors it must keep alive.
  struct Transfer {
    dist::Work work;
    at::Tensor tensor;
  };
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
                                      const LossFunction& loss, std::vector<at::Tensor>& losses) const;
  void run_backward(const MicroBatch& micro_batch, InFlight& kept, const MicroBatchSink& sink);
  void finish_sends();

  dist::Mesh& mesh_;
  model::StageSlice& slice_;
  peft::Method& method_;
  std::vector<std::string> logits_;  ///< by objective
  std::vector<Transfer> sends_;
};

}  // namespace espalier::train
