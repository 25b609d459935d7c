// SPDX-License-Identifier: Apache-2.0
// What the trainer says of a run when it ends: bytes by kind, rates, the best evaluation.
#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <set>

#include "common/durable_file.h"
#include "dist/agree.h"
#include "train/device.h"
#include "train/trainer.h"

namespace espalier::train {
namespace {

std::int64_t bytes_of(const std::map<std::string, at::Tensor>& tensors) {
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += static_cast<std::int64_t>(tensor.nbytes());
  return bytes;
}

/// Each of `own` as a list by rank. Collective: every rank, with the same keys.
nlohmann::json gather_bytes(dist::Communicator& control, const std::map<std::string, std::int64_t>& own) {
  auto bytes = at::zeros({static_cast<std::int64_t>(own.size()), control.num_ranks()}, at::kLong);
  std::int64_t row = 0;
  for (const auto& [key, value] : own) bytes[row++][control.rank()] = value;
  control.all_reduce(bytes).wait();
  auto by_key = nlohmann::json::object();
  const auto* value = bytes.const_data_ptr<std::int64_t>();
  for (const auto& [key, ignored] : own) {
    by_key[key] = std::vector<std::int64_t>(value, value + control.num_ranks());
    value += control.num_ranks();
  }
  return by_key;
}

/// The best evaluation of an objective, and why it ended if it ended early.
nlohmann::json course_of(const ObjectiveState& objective) {
  auto course = nlohmann::json::object();
  if (objective.best_value()) {
    course["best"] = {
        {"metric", objective.metric()}, {"value", *objective.best_value()}, {"step", objective.best_step()}};
  }
  if (!objective.is_training()) {
    course["ended"] = {{"reason", objective.end_reason()}, {"step", objective.end_step()}};
  }
  return course;
}

/// Of what the method recomputed on any rank. Collective: every rank.
std::optional<double> largest_inversion_error(Worker& worker) {
  auto& control = worker.control();
  auto errors = at::zeros({control.num_ranks()}, at::kDouble);
  errors[control.rank()] = worker.method().inversion_error().value_or(-1);  // none
  control.all_reduce(errors).wait();
  const auto largest = errors.max().item<double>();
  return largest < 0 ? std::nullopt : std::optional(largest);
}

}  // namespace

void Trainer::record_memory() {
  const auto kept = worker_.method().kept_tensors();
  // By memory: several slots may be parts of one kept tensor, which then has another name.
  std::set<const void*> kept_memory;
  for (const auto& [name, tensor] : kept) kept_memory.insert(tensor.storage().data());
  std::int64_t kept_in_slots = 0;
  worker_.slice().visit_weights(
      [&](const std::string& /*name*/, const at::Tensor& slot, const std::vector<std::int64_t>& /*shape*/) {
        const bool is_kept = !slot.requires_grad() && kept_memory.contains(slot.storage().data());
        kept_in_slots += is_kept ? static_cast<std::int64_t>(slot.nbytes()) : 0;
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

nlohmann::json Trainer::read_summary_of(std::int64_t steps_done) {
  std::string text;
  dist::together(
      worker_.control(), "reading the run's summary",
      [&] {
        if (is_writer() && std::filesystem::exists(folder_.summary_file())) text = read_file(folder_.summary_file());
      },
      ExitCode::kStorage);
  auto record = nlohmann::json::parse(dist::broadcast_text(worker_.control(), text), nullptr,
                                      /*allow_exceptions=*/false);
  const bool is_of_the_end =
      record.is_object() && record.value("steps", std::int64_t{-1}) == steps_done && !record.value("is_stopped", true);
  return is_of_the_end ? record : nlohmann::json();
}

nlohmann::json Trainer::summarize(std::int64_t steps_done, bool is_stopped) {
  const auto& place = worker_.place();
  const auto parameters = worker_.count_parameters();
  nlohmann::json record = {
      {"steps", steps_done},
      {"is_stopped", is_stopped},
      {"method", worker_.method().name()},
      {"stages", place.num_stages},
      {"replicas", place.num_replicas},
      {"threads", config_.threads},
      {"trained_parameters", std::accumulate(parameters.trained.begin(), parameters.trained.end(), std::int64_t{0})},
      {"frozen_parameters", parameters.frozen},
      {"checkpoint_bytes", is_writer() ? checkpoint::stored_bytes(last_checkpoint_) : 0},
      {"samples_per_second", progress_.rows_per_second()},
      {"tokens_per_second", progress_.tokens_per_second()},
      {"train_seconds", progress_.seconds()},
      {"steps_this_run", progress_.steps()}};
  record.update(gather_bytes(worker_.control(), {{"peak_allocated_bytes", peak_allocated_bytes(worker_.device())},
                                                 {"frozen_bytes", ledger_.memory(MemoryKind::kFrozen)},
                                                 {"trained_bytes", ledger_.memory(MemoryKind::kTrained)},
                                                 {"gradient_bytes", ledger_.memory(MemoryKind::kGradient)},
                                                 {"optimizer_bytes", ledger_.memory(MemoryKind::kOptimizer)},
                                                 {"kept_bytes", ledger_.memory(MemoryKind::kKept)},
                                                 {"reduced_bytes_per_step", reduced_bytes_}}));
  if (const auto error = largest_inversion_error(worker_)) {
    record["inversion_error"] = *error;
  }
  if (events_->has_any()) {
    // Ranks take part in every event; the first one's clock stands for all.
    record["resampling_seconds"] = events_->seconds();
    record["resampling_share"] = events_->seconds() / std::max(events_->seconds() + progress_.seconds(), 1e-9);
  }
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    auto result = course_of(objectives_[k]);
    if (objectives_[k].name().empty()) {
      record.update(result);
    } else {
      result["name"] = objectives_[k].name();
      result["trained_parameters"] = parameters.trained[k];
      record["objectives"].push_back(std::move(result));
    }
  }
  return record;
}

}  // namespace espalier::train
