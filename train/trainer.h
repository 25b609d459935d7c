// SPDX-License-Identifier: Apache-2.0
// The training loop: global batches of the sampler, one optimizer step each, evaluation, checkpoints, the best weights
// of each objective, and a summary.
#pragma once

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/store.h"
#include "common/byte_ledger.h"
#include "data/dataset.h"
#include "data/sampler.h"
#include "dist/gradient_sync.h"
#include "train/config.h"
#include "train/metrics.h"
#include "train/objective.h"
#include "train/progress.h"
#include "train/resampling.h"
#include "train/run_folder.h"
#include "train/training_step.h"
#include "train/worker.h"

namespace espalier::train {

struct TrainerConfig {
  data::DataConfig data;
  dist::GradientSyncConfig gradient_sync;
  ParallelConfig parallel;
  TrainConfig train;
  CheckpointConfig checkpoint;
  std::string run_folder;
  std::string config_text;  ///< what config.ini of the run folder will say
  /// Every option that can change a number, as INI text: compared with a checkpoint's before resuming.
  std::string numeric_options;
  int threads = 1;
  /// The same options with their defaults: one that a checkpoint does not know was added since, and was as its default.
  std::string default_options = {};
};

/// How training ended.
struct TrainSummary {
  std::int64_t steps = 0;
  bool is_stopped = false;  ///< on request: saved and resumable
  nlohmann::json record;    ///< everything, as summary.json holds it
};

class Trainer {
 public:
  /// `stop_requested` may be set by a signal handler at any time.
  /// Collective: every rank.  Owns: nothing; all arguments outlive it.  Throws: ConfigError for options that do not fit
  /// the dataset or leave nothing to train; IoError when the folder for checkpoints cannot be made.
  Trainer(const TrainerConfig& config, Worker& worker, const data::Dataset& dataset, ByteLedger& ledger,
          const std::atomic<bool>& stop_requested);
  ~Trainer();

  /// Trains to the end or to a stop; leaves the best (or last) weights in the worker.
  /// Collective: every rank.  Throws: NumericError on every rank once the loss or gradient of every objective has not
  /// been finite; ConfigError on every rank where the run folder does not allow what checkpoint.resume asks for;
  /// IoError, on every rank from saving and verifying checkpoints, else on one; what a StageExecutor throws, on one.
  TrainSummary run();

 private:
  /// Makes and locks the folder, goes on from a checkpoint or starts anew.
  void begin_run();
  /// One optimizer step with what is due after it; true when the run stops on request.
  [[nodiscard]] bool train_step(std::int64_t step);
  /// Leaves the best weights in the worker, and the summary in the folder.
  [[nodiscard]] TrainSummary end_run(std::int64_t steps_done, bool is_stopped);
  /// What summary.json says of the run where it had ended before, null otherwise. Collective: every rank.
  [[nodiscard]] nlohmann::json read_summary_of(std::int64_t steps_done);
  /// Throws: ConfigError where replicas would do nothing. Warns where stages would wait.
  void check_shares() const;
  /// Once, where no learning rate of the run is the one that was asked for.
  void warn_of_long_warmup() const;
  [[nodiscard]] std::int64_t num_steps() const;
  /// At the end of the run, and every so many steps; 0: at the end of every epoch.
  [[nodiscard]] bool is_due(std::int64_t steps_done, std::int64_t every_steps) const;
  /// Bytes that this rank has given to reductions of gradients.
  [[nodiscard]] std::int64_t gradient_traffic() const;
  /// Collective. Metrics of the validation split; renews the best weights.
  void run_evaluation(std::int64_t steps_done);
  /// Ends the objectives that diverged in the step. Throws: NumericError when all have.
  void end_diverged(const StepReport& report, std::int64_t steps_done);
  /// Ends the objectives that have had no better evaluation for too long.
  void end_impatient(std::int64_t steps_done);
  [[nodiscard]] bool is_any_training() const;
  /// Of the objectives that train, for the eye; not a number where none does any more.
  [[nodiscard]] double mean_loss(const StepReport& report) const;
  void record_step(const StepReport& report, std::int64_t steps_done, double seconds);
  void save(std::int64_t steps_done);
  void resume();
  void refuse_used_folder();
  /// Throws: ConfigError naming what differs from the run that made the checkpoint.
  void require_same_run(const checkpoint::LoadedCheckpoint& loaded) const;
  void restore(const checkpoint::LoadedCheckpoint& loaded);
  void record_memory();
  [[nodiscard]] nlohmann::json summarize(std::int64_t steps_done, bool is_stopped);
  /// Metrics of a split, of each objective. Collective.
  [[nodiscard]] std::vector<Metrics> evaluate_split(const std::string& split);
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
  std::optional<RunLock> lock_;  ///< rank 0's, from begin_run() on
  std::vector<ObjectiveState> objectives_;
  std::unique_ptr<checkpoint::CheckpointStore> store_;
  std::unique_ptr<TrainingStep> step_;
  std::unique_ptr<ResamplingEvents> events_;
  Progress progress_;

  std::int64_t start_step_ = 0;
  std::int64_t last_saved_step_ = -1;
  std::filesystem::path last_checkpoint_;
  std::int64_t reduced_bytes_ = 0;
};

}  // namespace espalier::train
