// SPDX-License-Identifier: Apache-2.0
// Runs a split through the pipeline and gathers its outputs by row.
#pragma once

#include <ATen/core/Tensor.h>

#include "data/dataset.h"
#include "train/config.h"
#include "train/metrics.h"
#include "train/worker.h"

namespace espalier::train {

/// What row_results() keeps of every row of `split`, in the order of the file, on every rank; for a pooled head the
/// logits [N, C]. Batches are dealt to the replicas in turn; which rows share a batch does not depend on the layout, so
/// neither do the bits. Collective: every rank.
at::Tensor predict(Worker& worker, data::TaskKind task, const data::Split& split, const data::DataConfig& data,
                   std::int64_t batch_size);

/// Metrics of `split` on every rank. Collective: every rank.
Metrics evaluate(Worker& worker, const data::Dataset& dataset, const std::string& split, const data::DataConfig& data,
                 std::int64_t batch_size);

}  // namespace espalier::train
