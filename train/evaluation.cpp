// SPDX-License-Identifier: Apache-2.0
#include "train/evaluation.h"

#include <ATen/ATen.h>

#include "train/task.h"

namespace espalier::train {

std::vector<at::Tensor> predict(Worker& worker, const std::vector<data::DatasetInfo>& infos, const data::Split& split,
                                const data::DataConfig& data, std::int64_t batch_size) {
  const auto& place = worker.place();
  const auto batches = data::sequential_batches(split.num_rows(), batch_size);
  std::vector<std::size_t> own;
  for (auto i = static_cast<std::size_t>(place.replica_index); i < batches.size();
       i += static_cast<std::size_t>(place.num_replicas)) {
    own.push_back(i);
  }
  const auto make = [&](std::size_t i) {
    return make_micro_batch(worker.backbone(), static_cast<int>(own[i]), split, batches[own[i]], data);
  };
  // Every row is written by one rank and is zero on the others, so the sum over ranks is exact.
  std::vector<at::Tensor> results;
  for (std::size_t k = 0; k < infos.size(); ++k) {
    results.push_back(at::zeros(
        {split.num_rows(), num_result_columns(infos[k].task, worker.objective(k).backbone.head())}, at::kFloat));
  }
  worker.executor().evaluate(own.size(), make, [&](const MicroBatch& micro_batch, const model::Carry& outgoing) {
    const auto& rows = batches[static_cast<std::size_t>(micro_batch.index)];
    for (std::size_t k = 0; k < infos.size(); ++k) {
      results[k]
          .narrow(0, rows.front(), static_cast<std::int64_t>(rows.size()))
          .copy_(row_results(infos[k].task, outgoing.at(peft::logits_name(worker.objective(k).part)),
                             with_labels(infos[k], micro_batch.inputs)));
    }
  });
  for (const auto& of_objective : results) {
    worker.control().all_reduce(of_objective).wait();
  }
  return results;
}

std::vector<Metrics> evaluate(Worker& worker, const std::vector<data::DatasetInfo>& infos, const data::Dataset& dataset,
                              const std::string& split_name, const data::DataConfig& data, std::int64_t batch_size) {
  const auto& split = dataset.split(split_name);
  const auto results = predict(worker, infos, split, data, batch_size);
  std::vector<Metrics> metrics;
  for (std::size_t k = 0; k < infos.size(); ++k) {
    const auto labels = predicts_tokens(infos[k].task) ? at::Tensor() : split.labels(infos[k].label_tensor);
    metrics.push_back(compute_metrics(infos[k].task, results[k], labels));
  }
  return metrics;
}

}  // namespace espalier::train
