// SPDX-License-Identifier: Apache-2.0
// How much each weight of the backbone matters for the training data: its empirical Fisher information, on any layout,
// for methods that start from it.
#pragma once

#include "data/dataset.h"
#include "data/sampler.h"
#include "dist/gradient_sync.h"
#include "train/config.h"
#include "train/worker.h"

namespace espalier::train {

/// Before the first step: lets those of the worker's objectives that want to start from the Fisher information of the
/// backbone's weights. That of a weight is the sum over training rows of its squared gradient of the row's own loss, in
/// fp32 whatever the worker computes in, with true labels and without dropout (Sung et al., LST, 2022, section 3.3); a
/// tied weight's gradient is that of all its places. A backbone that reads images behind its text is measured on the
/// text alone, as it runs beside a side network. The rows are the first that `sampler` gives. While it runs a stage
/// holds an fp32 copy of its weights, and gradients and sums of the same size; the peak counts from its end. The sums
/// have the same bits on every layout, unless `gradient_sync` is fast. Collective: every rank. Throws: as
/// StageExecutor.
void start_by_importance(Worker& worker, const data::Dataset& dataset, const data::Sampler& sampler,
                         const data::DataConfig& data, const dist::GradientSyncConfig& gradient_sync);

}  // namespace espalier::train
