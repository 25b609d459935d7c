// SPDX-License-Identifier: Apache-2.0
// Plain padded arrays in an HDF5 file, in place of a dataset (docs/predict.md).
#pragma once

#include <string>

#include "model/backbone.h"
#include "model/carry.h"

namespace espalier::launch {

/// The arrays of `path` under their `transformers` names; whole numbers as int64.
/// Throws: ConfigError naming file and array for what is neither labels nor read by the model.
model::NamedTensors read_arrays(const std::string& path, const model::Backbone& backbone);

}  // namespace espalier::launch
