// SPDX-License-Identifier: Apache-2.0
// Runs a split through the pipeline and gathers its outputs by row.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "data/dataset.h"
#include "train/config.h"
#include "train/metrics.h"
#include "train/worker.h"

namespace espalier::train {

/// What row_results() keeps of every row of `split`, in the order of the file, on every rank, for each objective of the
/// worker, fp32 [N rows, num_result_columns()]; for a pooled head the logits [N, C]. `infos`: of each objective, the
/// dataset with the labels it learns. Batches are dealt to the replicas in turn; which rows share a batch does not
/// depend on the layout, so neither do the bits. Collective: every rank. Throws: as StageExecutor and Split::collate().
std::vector<at::Tensor> predict(Worker& worker, const std::vector<data::DatasetInfo>& infos, const data::Split& split,
                                const data::DataConfig& data, std::int64_t batch_size);

/// Metrics of `split` on every rank, of each objective. Collective: every rank. Throws: as predict(); ConfigError for a
/// split that the dataset does not have.
std::vector<Metrics> evaluate(Worker& worker, const std::vector<data::DatasetInfo>& infos, const data::Dataset& dataset,
                              const std::string& split, const data::DataConfig& data, std::int64_t batch_size);

}  // namespace espalier::train
