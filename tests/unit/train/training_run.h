// SPDX-License-Identifier: Apache-2.0
// Whole training runs on threads as ranks, for laws that hold over any layout.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "temporary_folder.h"
#include "train/trainer.h"

namespace espalier::test {

struct Layout {
  int stages = 1;
  int replicas = 1;
};

struct RunRequest {
  std::filesystem::path model, dataset, folder;
  peft::MethodConfig peft;
  std::string pooling = "auto";
  std::int64_t steps = 20;
  std::int64_t stop_at_step = 0;
  std::int64_t patience = 0;
  std::string schedule = "1f1b";
  std::string strategy = "bucketed";
  double learning_rate = 1e-2;
  double epsilon = 1e-8;
  std::string device = "cpu";
  std::string compute_type = "fp32";
  double drop_path = 0;
  std::int64_t evaluate_every_steps = 0;
  double weight_decay = 0;
  bool restore_best = true;
  std::string best_metric = "auto";
  bool batched = false;
  std::vector<train::ObjectiveConfig> objectives = {};    ///< in place of `peft`; empty: one without a name
  std::map<std::string, std::string> label_columns = {};  ///< by objective; absent: the labels
  std::function<void(train::TrainerConfig&)> adjust;      ///< on every rank, last; may be empty
  std::atomic<bool>* stop = nullptr;                      ///< in place of a stop signal
  [[nodiscard]] optim::OptimizerConfig optimizer() const;
};

/// What a run left behind.
struct RunOutcome {
  std::vector<double> losses;                 ///< by step, from metrics.jsonl
  std::vector<double> gradient_norms;         ///< the same
  std::map<std::string, at::Tensor> trained;  ///< over all stages, with what a method keeps beside it
  nlohmann::json summary;
  std::map<std::string, std::int64_t> traffic;  ///< of rank 0
};

/// Trains on stages x replicas threads; a folder with a checkpoint is resumed.
RunOutcome run_training(RunRequest request, Layout layout);

/// Base of fixtures: runs of one request, each in a folder of its own; a name that comes again resumes.
class TrainingRuns {
 protected:
  RunOutcome run(const std::string& name, Layout layout);
  /// 20 steps train on one rank, and on 2x1, 1x2, 2x2 and 3x1, and 10 on 2x1 with 10 more on 3x1, they leave the same
  /// bits. `tries_gpipe`: so do they on 2x2 with the other schedule and gradient strategy.
  void expect_the_same_on_every_layout(bool tries_gpipe = false);
  /// No trained tensor of the run is what it is where nothing is learned.
  void expect_trained(const RunOutcome& outcome);

  TemporaryFolder folder_;
  RunRequest request_;
};

/// What the run of one of several objectives gave, under the names that it has alone; norms that are not finite are
/// left out. `folder`: of the joint run.
RunOutcome share_of(const RunOutcome& joint, const std::string& name, const std::filesystem::path& folder);

/// Equal names and equal bits.
void expect_same_bits(const RunOutcome& found, const RunOutcome& expected, const std::string& what);

}  // namespace espalier::test
