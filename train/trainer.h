// SPDX-License-Identifier: Apache-2.0
// The training loop: global batches of the sampler, one optimizer step each, evaluation, checkpoints, the best weights,
// and a summary. Everything that could differ between ranks is exchanged once a step, on the control communicator,
// before anyone acts.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "checkpoint/store.h"
#include "common/byte_ledger.h"
#include "data/dataset.h"
#include "data/sampler.h"
#include "dist/gradient_sync.h"
#include "optim/adamw.h"
#include "train/config.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/resampling.h"
#include "train/run_folder.h"
#include "train/tied_gradients.h"
#include "train/worker.h"

namespace espalier::train {

struct TrainerConfig {
  data::DataConfig data;
  optim::OptimizerConfig optimizer;
  dist::GradientSyncConfig gradient_sync;
  ParallelConfig parallel;
  TrainConfig train;
  CheckpointConfig checkpoint;
  std::string run_folder;
  std::string config_text;  ///< what config.ini of the run folder will say
  /// Every option that can change a number, as INI text: compared with a checkpoint's before resuming.
  std::string numeric_options;
  int threads = 1;
};

/// How training ended.
struct TrainSummary {
  std::int64_t steps = 0;
  bool is_stopped = false;  ///< on request: saved and resumable
  double best_value = 0;
  std::string best_metric;
  std::int64_t best_step = -1;
  nlohmann::json record;  ///< everything, as summary.json holds it
};

class Trainer {
 public:
  /// `stop_requested` may be set by a signal handler at any time.
  /// Collective: every rank.  Owns: nothing; all arguments outlive it.
  Trainer(const TrainerConfig& config, Worker& worker, const data::Dataset& dataset, ByteLedger& ledger,
          const std::atomic<bool>& stop_requested);
  ~Trainer();

  /// Trains to the end or to a stop; leaves the best (or last) weights in the worker.
  /// Collective: every rank.  Throws: NumericError on every rank when a loss or gradient is not finite.
  TrainSummary run();

 private:
  struct StepReport;
  [[nodiscard]] std::int64_t num_steps() const;
  /// Collective. One optimizer step.
  StepReport run_step(std::int64_t step);
  void check_gradient_flow(const std::vector<int>& contributions, bool had_micro_batches) const;
  /// Collective. Metrics of the validation split; renews the best weights.
  void run_evaluation(std::int64_t steps_done);
  void save(std::int64_t steps_done);
  void resume();
  void record_memory();
  [[nodiscard]] nlohmann::json summarize(std::int64_t steps_done, bool is_stopped);
  /// The trained tensor of a place in active_.
  [[nodiscard]] const peft::TrainedTensor& trained_at(std::size_t active) const;
  /// Of this stage; places of a tied tensor share one name and one memory.
  [[nodiscard]] std::map<std::string, at::Tensor> trained_by_name() const;
  [[nodiscard]] bool is_writer() const;

  const TrainerConfig& config_;
  Worker& worker_;
  const data::Dataset& dataset_;
  ByteLedger& ledger_;
  const std::atomic<bool>& stop_requested_;
  data::Sampler sampler_;
  RunFolder folder_;
  std::unique_ptr<checkpoint::CheckpointStore> store_;
  std::vector<int> active_;                     ///< indices into the method's trained tensors that are not inert
  std::vector<std::size_t> updated_;            ///< places in active_ of the tensors that own their memory
  std::vector<std::int64_t> tensors_of_stage_;  ///< tensors of each stage that the global norm counts, for its order
  std::unique_ptr<dist::GradientSync> sync_;
  std::unique_ptr<TiedGradients> tied_;
  std::unique_ptr<optim::AdamW> optimizer_;
  std::unique_ptr<ResamplingEvents> events_;
  std::string metric_;
  Progress progress_;

  std::int64_t start_step_ = 0;
  std::int64_t last_saved_step_ = -1;
  std::filesystem::path last_checkpoint_;
  std::map<std::string, at::Tensor> best_tensors_;  ///< of worker_.result()
  std::optional<double> best_value_;
  std::int64_t best_step_ = -1;
  std::int64_t evaluations_since_best_ = 0;
  std::int64_t reduced_bytes_ = 0;
};

}  // namespace espalier::train
