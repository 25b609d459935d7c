// SPDX-License-Identifier: Apache-2.0
// The options of a run that belong to no lower folder: the model, the layout, the training loop. What an option does
// stands in describe() (docs/options.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/options.h"

namespace espalier::train {

struct ModelConfig {
  std::string path;                   ///< Hugging Face folder; never written
  std::string pooling = "auto";       ///< auto: the family's | mean: of the attended tokens
  double drop_path = 0;               ///< probability, of the highest block; lower ones in proportion
  std::string compute_type = "fp32";  ///< fp32 | bf16 | fp16, of frozen weights and activations
  std::string device = "cpu";         ///< cpu | cuda
  bool random_weights = false;        ///< in place of the folder's
};
/// Keys "model.*".
void describe(OptionTable& table, ModelConfig& config);

/// How the ranks are laid out. Nothing here changes a result, except `threads`.
struct ParallelConfig {
  std::int64_t stages = 1;
  std::int64_t replicas = 0;               ///< 0: ranks / stages
  std::string schedule = "1f1b";           ///< 1f1b | gpipe
  std::vector<std::int64_t> first_blocks;  ///< block numbers where stages 1, 2, ... begin; empty: equal shares
  std::int64_t threads = 0;                ///< CPU threads of a rank; 0: train::default_threads()
};
/// Keys "parallel.*".
void describe(OptionTable& table, ParallelConfig& config);

struct TrainConfig {
  std::string initial_adapter;  ///< folder to start from; empty: none
  std::uint64_t seed = 0;       ///< of row order, dropout and initial values
  std::int64_t epochs = 3;
  std::int64_t max_steps = 0;               ///< optimizer steps in place of epochs; 0: by epochs
  std::int64_t stop_at_step = 0;            ///< save and stop after it; 0: never
  std::int64_t evaluate_every_steps = 0;    ///< 0: at the end of every epoch
  std::int64_t evaluation_batch_size = 64;  ///< rows
  std::string best_metric = "auto";         ///< auto, or one of deciding_metrics()
  std::int64_t patience = 0;                ///< evaluations without a better one; 0: any number
  bool restore_best = true;                 ///< end with the tensors of the best evaluation
  bool batched = false;                     ///< side networks of one shape run together
};
/// Keys "train.*".
void describe(OptionTable& table, TrainConfig& config);
/// Those of them that evaluation and prediction read.
void describe_evaluation(OptionTable& table, TrainConfig& config);

struct CheckpointConfig {
  std::int64_t every_steps = 0;  ///< 0: at the end of every epoch
  std::int64_t keep = 2;         ///< newest checkpoints that stay; 0: all
  std::string resume = "auto";   ///< auto | never | must
};
/// Keys "checkpoint.*".
void describe(OptionTable& table, CheckpointConfig& config);

struct RunFolderConfig {
  std::string folder;  ///< of this run; written
};
/// Keys "run.*".
void describe(OptionTable& table, RunFolderConfig& config);

}  // namespace espalier::train
