// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

#include "common/durable_file.h"
#include "common/error.h"
#include "common/log.h"
#include "dist/agree.h"
#include "train/device.h"
#include "train/evaluation.h"
#include "train/importance.h"

namespace espalier::train {

namespace {

// An end_reason(), on disk in checkpoints.
constexpr const char* kDiverged = "diverged";

data::Sampler make_sampler(const TrainerConfig& config, const data::Dataset& dataset) {
  const auto& split = dataset.split("train");
  return data::Sampler(split.num_rows(), config.train.seed, config.data,
                       [&split](std::int64_t row) { return split.length(row); });
}

/// Throws: ConfigError, agreed, for an option that would be silently without effect.
void require_validation(const TrainConfig& train, const data::Dataset& dataset) {
  const char* option = train.patience > 0               ? "train.patience"
                       : train.evaluate_every_steps > 0 ? "train.evaluate_every_steps"
                       : train.best_metric != "auto"    ? "train.best_metric"
                                                        : nullptr;
  if (option != nullptr && !dataset.has_split("validation")) {
    dist::throw_agreed<ConfigError>(
        fmt::format("{}: expected a dataset with a validation split, which the option is about, found none in {}; "
                    "prepare one (tools/prepare.py --validation), or leave the option out",
                    option, dataset.info().path.string()));
  }
}

}  // namespace

Trainer::Trainer(const TrainerConfig& config, Worker& worker, const data::Dataset& dataset, ByteLedger& ledger,
                 const std::atomic<bool>& stop_requested)
    : config_(config),
      worker_(worker),
      dataset_(dataset),
      ledger_(ledger),
      stop_requested_(stop_requested),
      sampler_(make_sampler(config, dataset)),
      folder_(config.run_folder),
      progress_(worker.control().rank() == 0) {
  require_validation(config.train, dataset);
  check_shares();
  for (std::size_t k = 0; k < worker.num_objectives(); ++k) {
    objectives_.emplace_back(worker.objective(k), worker.method(), config.train);
  }
  step_ = std::make_unique<TrainingStep>(
      TrainingStep::Config{config.data, config.train.seed, config.gradient_sync,
                           dist::schedule_kind_from(config.parallel.schedule), num_steps()},
      worker, objectives_);
  // A method that draws anew has one objective.
  events_ = std::make_unique<ResamplingEvents>(worker.method(), worker.mesh(), objectives_.front().optimizer(),
                                               sampler_.steps_per_epoch());
  store_ = std::make_unique<checkpoint::CheckpointStore>(folder_.checkpoints(), worker.control(),
                                                         static_cast<int>(config.checkpoint.keep));
}

Trainer::~Trainer() = default;

bool Trainer::is_writer() const {
  return worker_.control().rank() == 0;
}

std::int64_t Trainer::num_steps() const {
  return config_.train.max_steps > 0 ? config_.train.max_steps : config_.train.epochs * sampler_.steps_per_epoch();
}

std::map<std::string, at::Tensor> Trainer::trained_by_name() const {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& tensor : worker_.method().trained()) {
    tensors.emplace(tensor.name, tensor.value.detach());
  }
  return tensors;
}

bool Trainer::is_due(std::int64_t steps_done, std::int64_t every_steps) const {
  return steps_done == num_steps() || steps_done % (every_steps > 0 ? every_steps : sampler_.steps_per_epoch()) == 0;
}

std::int64_t Trainer::gradient_traffic() const {
  return ledger_.traffic("all_gather", "gradient") + ledger_.traffic("all_reduce", "gradient");
}

void Trainer::check_shares() const {
  const auto& place = worker_.place();
  const auto batch = sampler_.batch(0);  // the largest, of every epoch
  const auto count = static_cast<std::int64_t>(batch.micro_batches.size());
  if (count < place.num_replicas) {
    dist::throw_agreed<ConfigError>(fmt::format(
        "data.micro_batch_size: expected a micro-batch for each of {} replicas in every step, found {} of {} rows in "
        "all, so that the others would do nothing; {}",
        place.num_replicas, count, batch.num_rows,
        batch.num_rows < place.num_replicas
            ? fmt::format("use at most {} replicas", batch.num_rows)
            : fmt::format("set data.micro_batch_size to at most {}", batch.num_rows / place.num_replicas)));
  }
  const auto share = count / place.num_replicas;
  if (place.num_stages > 1 && share < place.num_stages && is_writer()) {
    log_warning("train",
                "a step gives {} micro-batch(es) to a replica of {} stages, which therefore wait for one another; more "
                "and smaller ones keep them busy: data.micro_batch_size of at most {} (another one changes last bits)",
                share, place.num_stages,
                std::max<std::int64_t>(1, batch.num_rows / (std::int64_t{place.num_replicas} * place.num_stages)));
  }
}

void Trainer::warn_of_long_warmup() const {
  const auto only_warms_up = [&](const ObjectiveState& objective) {
    auto config = objective.optimizer_config();
    config.schedule = "constant";  // is less than it should be in the warm-up alone
    return optim::learning_rate_at(config, num_steps() - 1, num_steps()) < config.learning_rate;
  };
  const auto count = std::count_if(objectives_.begin(), objectives_.end(), only_warms_up);
  if (count > 0 && is_writer()) {
    log_warning("train",
                "the warm-up covers the whole run of {} steps{}, so that the learning rate never gets to "
                "optimizer.learning_rate; lower optimizer.warmup_steps or optimizer.warmup_fraction, or train for more "
                "steps",
                num_steps(), count > 1 ? fmt::format(" for {} objectives", count) : "");
  }
}

bool Trainer::is_any_training() const {
  return std::any_of(objectives_.begin(), objectives_.end(),
                     [](const ObjectiveState& objective) { return objective.is_training(); });
}

std::vector<Metrics> Trainer::evaluate_split(const std::string& split) {
  return evaluate(worker_, worker_.datasets(), dataset_, split, config_.data, config_.train.evaluation_batch_size);
}

void Trainer::run_evaluation(std::int64_t steps_done) {
  if (!dataset_.has_split("validation")) {
    return;
  }
  const auto metrics = evaluate_split("validation");
  progress_.end_line();
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    auto& objective = objectives_[k];
    if (!objective.is_training()) {
      continue;
    }
    const bool is_best = objective.consider(metrics[k], steps_done);
    if (is_best && config_.train.restore_best) {
      for (const auto& [name, tensor] : worker_.result(k)) {
        objective.best_tensors()[name] = tensor.clone();
      }
    }
    const auto name = objective.name().empty() ? "validation" : objective.name() + ": validation";
    log_info("train", "{} after step {}: {} {:.4f}{}, loss {:.4f}", name, steps_done, objective.metric(),
             metrics[k].at(objective.metric()), is_best ? " (best)" : "", metrics[k].at("loss"));
    if (is_writer()) {
      nlohmann::json record = {
          {"kind", "evaluation"}, {"split", "validation"}, {"step", steps_done}, {"is_best", is_best}};
      if (!objective.name().empty()) {
        record["objective"] = objective.name();
      }
      record.update(nlohmann::json(metrics[k]));
      folder_.append_metrics(record);
    }
  }
}

void Trainer::end_diverged(const StepReport& report, std::int64_t steps_done) {
  std::vector<std::pair<std::string, std::string>> diverged;  // names and what was found
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    const auto& own = report.objectives[k];
    if (!objectives_[k].is_training() || own.is_finite()) {
      continue;
    }
    objectives_[k].end(steps_done, kDiverged);
    diverged.emplace_back(objectives_[k].name(),
                          fmt::format("step {}: expected a finite loss and gradient norm, found loss {} and norm {}; "
                                      "lower optimizer.learning_rate, use model.compute_type=fp32 or bf16, or look at "
                                      "the rows of this batch",
                                      steps_done, own.loss, own.gradient_norm));
  }
  if (diverged.empty()) {
    return;
  }
  progress_.end_line();
  if (std::all_of(objectives_.begin(), objectives_.end(),
                  [](const ObjectiveState& objective) { return objective.end_reason() == kDiverged; })) {
    dist::throw_agreed<NumericError>(diverged.back().second);
  }
  for (const auto& [name, text] : diverged) {
    log_warning("train", "objective {} ends, {}: {}", name,
                is_any_training() ? "the others go on" : "the last that trained", text);
  }
}

void Trainer::end_impatient(std::int64_t steps_done) {
  for (auto& objective : objectives_) {
    const bool has_lost_patience = objective.is_training() && config_.train.patience > 0 &&
                                   objective.evaluations_since_best() >= config_.train.patience;
    if (has_lost_patience) {
      objective.end(steps_done, "no better evaluation");
      log_info("train", "{}no better {} in {} evaluations: stopping early after step {}",
               objective.name().empty() ? "" : objective.name() + ": ", objective.metric(),
               objective.evaluations_since_best(), steps_done);
    }
  }
}

double Trainer::mean_loss(const StepReport& report) const {
  double sum = 0;
  int count = 0;
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    if (objectives_[k].is_training()) {
      sum += report.objectives[k].loss;
      ++count;
    }
  }
  return count > 0 ? sum / count : std::numeric_limits<double>::quiet_NaN();
}

void Trainer::record_step(const StepReport& report, std::int64_t steps_done, double seconds) {
  nlohmann::json record = {{"kind", "train"},     {"step", steps_done},      {"epoch", report.epoch},
                           {"rows", report.rows}, {"tokens", report.tokens}, {"seconds", seconds}};
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    if (!objectives_[k].is_training() && objectives_[k].end_step() < steps_done) {
      continue;
    }
    const auto& own = report.objectives[k];
    auto& place = objectives_[k].name().empty() ? record : record["objectives"][objectives_[k].name()];
    place["loss"] = own.loss;
    place["gradient_norm"] = own.gradient_norm;
    place["learning_rate"] = own.learning_rate;
  }
  folder_.append_metrics(record);
}

void Trainer::begin_run() {
  const auto on_writer = [&](const char* what, const std::function<void()>& action) {
    const auto act = [&] {
      if (is_writer()) action();
    };
    dist::together(worker_.control(), what, act, ExitCode::kStorage);
  };
  on_writer("opening the run folder", [&] {
    folder_.create();
    lock_.emplace(folder_.lock_file());
  });
  resume();
  // Only now: a run that refuses to resume leaves its folder as it was.
  on_writer("beginning the run's files", [&] {
    folder_.truncate_metrics(start_step_);
    write_file_durably(folder_.config_file(), config_.config_text);
  });
  warn_of_long_warmup();
  if (start_step_ == 0) {
    start_by_importance(worker_, dataset_, sampler_, config_.data, config_.gradient_sync);
  }
  record_memory();
}

bool Trainer::train_step(std::int64_t step) {
  if (events_->run_before(step)) {
    progress_.end_line();
    log_info("train", "new subspaces before step {}; {:.1f} s for such events so far", step + 1, events_->seconds());
  }
  progress_.resume();
  const auto traffic_before = gradient_traffic();
  const double seconds_before = progress_.seconds();
  const auto report = step_->run(step, sampler_.batch(step), dataset_.split("train"), stop_requested_,
                                 /*checks_flow=*/step == start_step_);
  reduced_bytes_ = gradient_traffic() - traffic_before;
  const auto done = step + 1;
  end_diverged(report, done);
  progress_.step({done, num_steps(), report.epoch, mean_loss(report), report.rows, report.tokens,
                  peak_allocated_bytes(worker_.device())});
  progress_.pause();
  if (is_writer()) {
    record_step(report, done, progress_.seconds() - seconds_before);
  }
  if (is_due(done, config_.train.evaluate_every_steps)) {
    run_evaluation(done);
  }
  end_impatient(done);
  const bool is_stopped = report.stop_requested || (done == config_.train.stop_at_step && done < num_steps());
  if (is_stopped || !is_any_training() || is_due(done, config_.checkpoint.every_steps)) {
    save(done);
  }
  return is_stopped;
}

TrainSummary Trainer::end_run(std::int64_t steps_done, bool is_stopped) {
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    if (!is_stopped && config_.train.restore_best && !objectives_[k].best_tensors().empty()) {
      worker_.load_result(objectives_[k].best_tensors(), k);
    }
  }
  if (progress_.steps() == 0) {
    if (auto before = read_summary_of(steps_done); !before.is_null()) {
      return {steps_done, is_stopped, std::move(before)};  // the rates of this process would be zeros
    }
  }
  TrainSummary summary{steps_done, is_stopped, summarize(steps_done, is_stopped)};
  if (!is_stopped && dataset_.has_split("test")) {
    const auto metrics = evaluate_split("test");
    for (std::size_t k = 0; k < objectives_.size(); ++k) {
      (objectives_[k].name().empty() ? summary.record : summary.record["objectives"][k])["test"] = metrics[k];
    }
  }
  if (is_writer()) {
    write_file_durably(folder_.summary_file(), summary.record.dump(2) + "\n");
  }
  return summary;
}

TrainSummary Trainer::run() {
  begin_run();
  std::int64_t done = start_step_;
  bool is_stopped = false;
  while (!is_stopped && done < num_steps() && is_any_training()) {
    is_stopped = train_step(done);
    ++done;
  }
  return end_run(done, is_stopped);
}

}  // namespace espalier::train
