// SPDX-License-Identifier: Apache-2.0
// What the trainer says of a run when it ends: bytes by kind, rates, the best evaluation.
#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "train/device.h"
#include "train/trainer.h"

namespace espalier::train {
namespace {

std::int64_t bytes_of(const std::map<std::string, at::Tensor>& tensors) {
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += static_cast<std::int64_t>(tensor.nbytes());
  return bytes;
}

}  // namespace

void Trainer::record_memory() {
  const auto kept = worker_.method().kept_tensors();
  std::int64_t kept_in_slots = 0;
  worker_.slice().visit_weights(
      [&](const std::string& name, const at::Tensor& slot, const std::vector<std::int64_t>& /*shape*/) {
        kept_in_slots += kept.contains(name) ? static_cast<std::int64_t>(slot.nbytes()) : 0;
      });
  ledger_.set_memory(MemoryKind::kFrozen, worker_.slice().frozen_bytes() - kept_in_slots);
  ledger_.set_memory(MemoryKind::kKept, bytes_of(kept));
  ledger_.set_memory(MemoryKind::kTrained, bytes_of(trained_by_name()));
  ledger_.set_memory(MemoryKind::kGradient, step_->gradient_bytes());
  std::int64_t optimizer_bytes = 0;
  for (const auto& objective : objectives_) {
    optimizer_bytes += objective.optimizer().state_bytes();
  }
  ledger_.set_memory(MemoryKind::kOptimizer, optimizer_bytes);
}

nlohmann::json Trainer::summarize(std::int64_t steps_done, bool is_stopped) {
  const auto& place = worker_.place();
  const auto parameters = worker_.count_parameters();
  auto& control = worker_.control();
  auto bytes = at::zeros({control.num_ranks(), 6}, at::kLong);
  auto own = bytes[control.rank()];
  own[0] = peak_allocated_bytes(worker_.device());
  own[1] = ledger_.memory(MemoryKind::kFrozen);
  own[2] = ledger_.memory(MemoryKind::kTrained);
  own[3] = ledger_.memory(MemoryKind::kOptimizer);
  own[4] = reduced_bytes_;
  own[5] = ledger_.memory(MemoryKind::kKept);
  control.all_reduce(bytes).wait();
  const auto column = [&](std::int64_t index) {
    const auto values = bytes.select(1, index).contiguous();
    return std::vector<std::int64_t>(values.const_data_ptr<std::int64_t>(),
                                     values.const_data_ptr<std::int64_t>() + values.numel());
  };
  nlohmann::json record = {
      {"steps", steps_done},
      {"is_stopped", is_stopped},
      {"method", worker_.method().name()},
      {"stages", place.num_stages},
      {"replicas", place.num_replicas},
      {"threads", config_.threads},
      {"trained_parameters", std::accumulate(parameters.trained.begin(), parameters.trained.end(), std::int64_t{0})},
      {"frozen_parameters", parameters.frozen},
      {"peak_allocated_bytes", column(0)},
      {"frozen_bytes", column(1)},
      {"trained_bytes", column(2)},
      {"optimizer_bytes", column(3)},
      {"kept_bytes", column(5)},
      {"checkpoint_bytes", is_writer() ? checkpoint::stored_bytes(last_checkpoint_) : 0},
      {"reduced_bytes_per_step", column(4)},
      {"samples_per_second", progress_.rows_per_second()},
      {"tokens_per_second", progress_.tokens_per_second()},
      {"train_seconds", progress_.seconds()},
      {"steps_this_run", progress_.steps()}};
  if (events_->has_any()) {
    // Ranks take part in every event; the first one's clock stands for all.
    record["resampling_seconds"] = events_->seconds();
    record["resampling_share"] = events_->seconds() / std::max(events_->seconds() + progress_.seconds(), 1e-9);
  }
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    const auto& objective = objectives_[k];
    auto result = nlohmann::json::object();
    if (objective.best_value()) {
      result["best"] = {
          {"metric", objective.metric()}, {"value", *objective.best_value()}, {"step", objective.best_step()}};
    }
    if (!objective.is_training()) {
      result["ended"] = {{"reason", objective.end_reason()}, {"step", objective.end_step()}};
    }
    if (objective.name().empty()) {
      record.update(result);
    } else {
      result["name"] = objective.name();
      result["trained_parameters"] = parameters.trained[k];
      record["objectives"].push_back(std::move(result));
    }
  }
  return record;
}

}  // namespace espalier::train
