// SPDX-License-Identifier: Apache-2.0
// What evaluate, predict and generate read: a dataset, or plain padded arrays in an HDF5 file (docs/predict.md).
#pragma once

#include <string>

#include "data/dataset.h"
#include "data/sampler.h"
#include "model/backbone.h"
#include "model/carry.h"
#include "train/worker.h"

namespace espalier::launch {

/// A dataset that fits the worker's backbone.
struct FittingDataset {
  data::Dataset dataset;
  data::DatasetInfo info;  ///< with the labels that the options name
};
/// Throws: ConfigError as require_fit(), on every rank. Collective: every rank.
FittingDataset open_fitting_dataset(train::Worker& worker, const data::DataConfig& config);

/// The arrays of `path` under their `transformers` names; whole numbers as int64.
/// Throws: ConfigError naming file and array for what is neither labels nor read by the model.
model::NamedTensors read_arrays(const std::string& path, const model::Backbone& backbone);
/// Throws: ConfigError for arrays of `path` that cannot be one batch of the worker's, or with `reads_ids` have no
/// 'input_ids' of two dimensions.
void check_arrays(const model::NamedTensors& arrays, const std::string& path, const train::Worker& worker,
                  bool reads_ids);

}  // namespace espalier::launch
