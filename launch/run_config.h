// SPDX-License-Identifier: Apache-2.0
// All options of a run in one place: each folder describes its own, this file only collects them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/options.h"
#include "data/sampler.h"
#include "dist/gradient_sync.h"
#include "optim/adamw.h"
#include "peft/method.h"
#include "train/config.h"
#include "train/trainer.h"

namespace espalier::launch {

struct RunConfig {
  train::RunFolderConfig run;
  train::ModelConfig model;
  data::DataConfig data;
  peft::MethodConfig peft;
  optim::OptimizerConfig optimizer;
  train::TrainConfig train;
  train::ParallelConfig parallel;
  dist::GradientSyncConfig gradient_sync;
  train::CheckpointConfig checkpoint;
};

/// Declares every option of `config`. `config` outlives the table.
void describe(OptionTable& table, RunConfig& config);
/// Those that evaluate, predict and generate read.
void describe_inference(OptionTable& table, RunConfig& config);

/// The options that can change a number, as INI text: all but places on disk, the layout, and when to save or stop.
std::string numeric_options(const OptionTable& table);
/// The same of a run that sets none.
std::string default_numeric_options();

/// The options that an adapter needs to be attached again, and evaluated: peft.*, how the head pools, what was learned.
std::string adapter_options(const OptionTable& table);

/// Reads a file of options: in a job of several ranks rank 0 reads it and every rank gets the same bytes.
using TextReader = std::function<std::string(const std::string& path)>;

/// The bytes of a file that the user named. Throws: ConfigError where it cannot be read: a wrong name is wrong input,
/// not a failing disk.
std::string read_named_file(const std::string& path);

/// Reads "--config FILE" into `files`, then the other flags into `flags`: one table where a command takes every option.
/// Throws: ConfigError.
void read_arguments(OptionTable& files, OptionTable& flags, const std::vector<std::string>& arguments,
                    const TextReader& read_text);

}  // namespace espalier::launch
