// SPDX-License-Identifier: Apache-2.0
// One optimizer step over all ranks: the global batch through the stages, gradients summed over the replicas, one
// exchange of everything that could differ between ranks, clipping and update of each objective by itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "data/sampler.h"
#include "dist/gradient_sync.h"
#include "train/config.h"
#include "train/objective.h"
#include "train/tied_gradients.h"
#include "train/worker.h"

namespace espalier::train {

/// What every rank knows of a step once it is exchanged.
struct StepReport {
  struct OfObjective {
    double loss = 0;
    double gradient_norm = 0;
    double learning_rate = 0;
    [[nodiscard]] bool is_finite() const;
  };
  std::vector<OfObjective> objectives = {};
  std::int64_t epoch = 0;
  std::int64_t rows = 0;
  std::int64_t tokens = 0;      ///< without padding; of images, patches
  bool stop_requested = false;  ///< on any rank
};

class TrainingStep {
 public:
  struct Config {
    data::DataConfig data;
    std::uint64_t seed = 0;
    dist::GradientSyncConfig gradient_sync;
    dist::ScheduleKind schedule = dist::ScheduleKind::k1F1B;
    std::int64_t num_steps = 0;  ///< of the whole run, for the learning rates
  };
  /// Collective: every rank.  Owns: nothing; worker and objectives outlive it.
  /// Throws: ConfigError on every rank when an objective trains nothing.
  TrainingStep(const Config& config, Worker& worker, std::vector<ObjectiveState>& objectives);

  /// Updates every objective that is training and whose loss and norm are finite; what is not finite is reported, not
  /// thrown. `stop_requested` is read last, when the ranks exchange what they know: a signal costs no further step.
  /// `checks_flow`: every trained tensor must get a gradient.
  /// Collective: every rank, with the same batch.
  /// Throws: InternalError on every rank, naming the tensors without; else as StageExecutor.
  StepReport run(std::int64_t step, const data::GlobalBatch& batch, const data::Split& split,
                 const std::atomic<bool>& stop_requested, bool checks_flow);

  /// Bytes of the gradients of all objectives.
  [[nodiscard]] std::int64_t gradient_bytes() const;

 private:
  class Exchange;
  using Losses = std::vector<std::vector<double>>;         ///< of the micro-batches of this replica, by objective
  using Gradients = std::vector<std::vector<at::Tensor>>;  ///< by objective, as its optimizer has its parameters
  /// Those of this replica.
  [[nodiscard]] std::vector<MicroBatch> make_micro_batches(const data::GlobalBatch& batch, const data::Split& split,
                                                           dist::MicroBatchRange range) const;
  /// Gradients by place in active_, summed over the replicas and all places of tied tensors.
  [[nodiscard]] std::vector<at::Tensor> run_batch(std::int64_t step, const data::GlobalBatch& batch,
                                                  const data::Split& split,
                                                  const std::vector<MicroBatch>& micro_batches,
                                                  dist::MicroBatchRange range, bool checks_flow, Losses& losses);
  [[nodiscard]] Gradients share_out(std::vector<at::Tensor> sums) const;
  /// Writes what this rank knows of the step.
  void fill(Exchange& exchange, const std::vector<MicroBatch>& micro_batches, const Losses& losses,
            const Gradients& gradients) const;
  /// Clips and updates by what all ranks know; returns loss, norm and learning rate of each objective.
  [[nodiscard]] std::vector<StepReport::OfObjective> update(std::int64_t step, Exchange& exchange,
                                                            Gradients& gradients);
  void check_gradient_flow(const std::vector<int>& contributions, bool had_micro_batches) const;
  [[nodiscard]] const peft::TrainedTensor& trained_at(std::size_t active) const;

  Config config_;
  Worker& worker_;
  std::vector<ObjectiveState>& objectives_;
  std::vector<int> active_;                ///< those of all objectives, one after the other
  std::vector<std::size_t> first_active_;  ///< of each objective, a place in active_
  std::vector<int> active_index_;          ///< of each trained tensor, its place in active_; -1 for inert ones
  /// By objective and stage: tensors that the global norm counts, for its order.
  std::vector<std::vector<std::int64_t>> tensors_of_stage_;
  std::unique_ptr<dist::GradientSync> sync_;
  std::unique_ptr<TiedGradients> tied_;
};

}  // namespace espalier::train
