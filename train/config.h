// SPDX-License-Identifier: Apache-2.0
// The options of a run that belong to no lower folder: the model, the layout, the training loop.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/options.h"

namespace espalier::train {

struct ModelConfig {
  std::string path;
  std::string pooling = "auto";
  double drop_path = 0;
  std::string compute_type = "fp32";
  std::string device = "cpu";
  bool random_weights = false;
};
/// Keys "model.*".
void describe(OptionTable& table, ModelConfig& config);

/// How the ranks are laid out. Nothing here changes a result, except `threads`.
struct ParallelConfig {
  std::int64_t stages = 1;
  std::int64_t replicas = 0;
  std::string schedule = "1f1b";
  std::vector<std::int64_t> first_blocks;
  std::int64_t threads = 0;
};
/// Keys "parallel.*".
void describe(OptionTable& table, ParallelConfig& config);

struct TrainConfig {
  std::string initial_adapter;
  std::uint64_t seed = 0;
  std::int64_t epochs = 3;
  std::int64_t max_steps = 0;
  std::int64_t stop_at_step = 0;
  std::int64_t evaluate_every_steps = 0;
  std::int64_t evaluation_batch_size = 64;
  std::string best_metric = "auto";
  std::int64_t patience = 0;
  bool restore_best = true;
  bool batched = false;
};
/// Keys "train.*".
void describe(OptionTable& table, TrainConfig& config);

struct CheckpointConfig {
  std::int64_t every_steps = 0;
  std::int64_t keep = 2;
  std::string resume = "auto";
};
/// Keys "checkpoint.*".
void describe(OptionTable& table, CheckpointConfig& config);

struct RunFolderConfig {
  std::string folder;
};
/// Keys "run.*".
void describe(OptionTable& table, RunFolderConfig& config);

}  // namespace espalier::train
