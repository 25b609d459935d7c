// SPDX-License-Identifier: Apache-2.0
// What evaluate, predict and generate read: a dataset, or plain padded arrays in an HDF5 file (docs/predict.md).
#pragma once

#include <string>

#include "common/options.h"
#include "data/dataset.h"
#include "data/sampler.h"
#include "dist/communicator.h"
#include "launch/adapter_files.h"
#include "model/backbone.h"
#include "model/carry.h"
#include "train/worker.h"

namespace espalier::launch {

/// The dataset of the options; warns where they cut rows that it has.
/// Collective: every rank.  Throws: ConfigError, IoError on every rank.
data::Dataset open_dataset(dist::Communicator& control, const data::DataConfig& config);

/// A dataset that fits the worker's backbone.
struct FittingDataset {
  data::Dataset dataset;
  data::DatasetInfo info;  ///< with the labels that the options name
};
/// Collective: every rank.  Throws: ConfigError as require_fit(), on every rank.
FittingDataset open_fitting_dataset(const LoadedWorker& loaded, const data::DataConfig& config);

/// Throws: ConfigError where --split stands beside --inputs, or where there is no `output` or no folder for it: hours
/// of work must not end in a wrong name.
void check_places(const OptionTable& table, const std::string& inputs, const std::string& output);

/// The arrays of `path` under their `transformers` names; whole numbers as int64, others as fp32. Collective: no; every
/// rank reads the file. Throws: ConfigError naming file and array for what is neither labels nor read by the model, or
/// of another kind; else as Hdf5File::open() and read().
model::NamedTensors read_arrays(const std::string& path, const model::Backbone& backbone);
/// Throws: ConfigError for arrays of `path` that cannot be one batch of the worker's, or with `reads_ids` have no
/// 'input_ids' of two dimensions.
void check_arrays(const model::NamedTensors& arrays, const std::string& path, const train::Worker& worker,
                  bool reads_ids);

}  // namespace espalier::launch
