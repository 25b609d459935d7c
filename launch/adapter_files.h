// SPDX-License-Identifier: Apache-2.0
// What an adapter says of itself, and attaching one: shared by train, export, evaluate and predict.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "checkpoint/adapter.h"
#include "common/options.h"
#include "data/dataset.h"
#include "launch/commands.h"
#include "launch/objectives.h"
#include "launch/run_config.h"
#include "launch/session.h"
#include "peft/method.h"
#include "train/worker.h"

namespace espalier::launch {

/// adapter.json of what an objective of the worker trained (docs/adapter_format.md).
nlohmann::json describe_adapter(const ObjectiveOptions& options, const train::WorkerObjective& objective,
                                const std::string& base_model_digest, const data::DatasetInfo& dataset);

/// Where weights to evaluate come from: a run folder, an adapter folder, or neither (the bare backbone with its own
/// head).
struct WeightsRequest {
  std::string run;        ///< --run
  std::string adapter;    ///< --adapter; ours or PEFT's
  std::string objective;  ///< --objective; of a run that has several
};
void describe(OptionTable& table, WeightsRequest& request);

struct LoadedWorker {
  std::unique_ptr<train::Worker> worker;
  nlohmann::json adapter;  ///< what the adapter says of itself; an empty object for the bare backbone
};
/// Reads options (a run's config.ini, the adapter's options, then `arguments`, whose flags `table` declares) and makes
/// the worker with its trained tensors loaded. `check_flags` throws ConfigError for flags that the command cannot take,
/// before anything is loaded.
/// Collective: every rank.  Throws: ConfigError, IoError.
LoadedWorker make_worker_with_weights(Session& session, const Arguments& arguments, OptionTable& table, RunConfig& run,
                                      WeightsRequest& request, const std::function<void()>& check_flags = {});

/// Reads an adapter of ours, or PEFT's LoRA for the model in `model_folder`. Throws: ConfigError, IoError.
checkpoint::Adapter read_any_adapter(const std::filesystem::path& folder, const std::filesystem::path& model_folder);

/// Gives the worker the adapter's tensors.
/// Collective: every rank.  Throws: ConfigError when they were made for another backbone (PEFT does not say for which),
/// or when a tensor is missing or left over, since it was made with other options.
void load_adapter(train::Worker& worker, const checkpoint::Adapter& adapter, const std::string& folder);

/// Throws: ConfigError when the dataset was made with another tokenizer than the backbone's vocabulary allows, for
/// another kind of head, or for other labels than those of the head, or of the `adapter` that describes itself so.
void require_fit(const model::Backbone& backbone, const data::DatasetInfo& dataset, const nlohmann::json& adapter);

}  // namespace espalier::launch
