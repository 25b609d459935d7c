// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/check.h"
#include "common/durable_file.h"
#include "common/error.h"
#include "common/log.h"
#include "dist/agree.h"
#include "train/device.h"
#include "train/evaluation.h"
#include "train/importance.h"
#include "train/task.h"

namespace espalier::train {

/// What every rank knows of a step once it is exchanged.
struct Trainer::StepReport {
  double loss = 0;
  double gradient_norm = 0;
  double learning_rate = 0;
  std::int64_t epoch = 0;
  std::int64_t rows = 0;
  std::int64_t tokens = 0;
  bool stop_requested = false;
};

namespace {

data::Sampler make_sampler(const TrainerConfig& config, const data::Dataset& dataset) {
  const auto& split = dataset.split("train");
  return data::Sampler(split.num_rows(), config.train.seed, config.data,
                       [&split](std::int64_t row) { return split.length(row); });
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
      metric_(config.train.best_metric == "auto" ? default_metric(dataset.info().task) : config.train.best_metric),
      progress_(worker.control().rank() == 0) {
  require_metric(dataset.info().task, metric_);
  const auto& trained = worker.method().trained();
  std::vector<at::Tensor> active_tensors;
  std::vector<std::string> active_names;
  std::vector<optim::Parameter> parameters;
  std::int64_t num_counted = 0;
  for (int i = 0; i < static_cast<int>(trained.size()); ++i) {
    const auto& tensor = trained[static_cast<std::size_t>(i)];
    if (!tensor.is_inert) {
      active_.push_back(i);
      active_tensors.push_back(tensor.value);
      const bool owns_memory = std::find(active_names.begin(), active_names.end(), tensor.name) == active_names.end();
      if (owns_memory) {
        updated_.push_back(active_.size() - 1);
        parameters.push_back({tensor.name, tensor.value, tensor.decays});
      }
      active_names.push_back(tensor.name);
      num_counted += tensor.is_copy ? 0 : 1;
    }
  }
  auto counts = at::zeros({worker.place().num_stages}, at::kLong);
  if (worker.place().replica_index == 0) {
    counts[worker.place().stage_index] = num_counted;
  }
  worker.control().all_reduce(counts).wait();
  tensors_of_stage_.assign(counts.const_data_ptr<std::int64_t>(),
                           counts.const_data_ptr<std::int64_t>() + counts.numel());
  if (counts.sum().item<std::int64_t>() == 0) {
    throw ConfigError(
        fmt::format("peft.method={}: expected something to train, found nothing: a language model has no "
                    "head of the task's; choose another method",
                    worker.method().name()));
  }
  sync_ = dist::make_gradient_sync(config.gradient_sync, *worker.mesh().replicas, active_tensors);
  tied_ = std::make_unique<TiedGradients>(worker.mesh(), active_names);
  optimizer_ = std::make_unique<optim::AdamW>(config.optimizer, std::move(parameters));
  events_ = std::make_unique<ResamplingEvents>(worker.method(), worker.mesh(), *optimizer_, sampler_.steps_per_epoch());
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

const peft::TrainedTensor& Trainer::trained_at(std::size_t active) const {
  return worker_.method().trained()[static_cast<std::size_t>(active_[active])];
}

std::map<std::string, at::Tensor> Trainer::trained_by_name() const {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& tensor : worker_.method().trained()) {
    tensors.emplace(tensor.name, tensor.value.detach());
  }
  return tensors;
}

void Trainer::check_gradient_flow(const std::vector<int>& contributions, bool had_micro_batches) const {
  std::vector<std::string> missing;
  for (std::size_t i = 0; had_micro_batches && i < active_.size(); ++i) {
    if (contributions[i] == 0) {
      missing.push_back(trained_at(i).name);
    }
  }
  const auto text = missing.empty()
                        ? std::string()
                        : fmt::format(
                              "gradient flow: expected a gradient for every trained tensor in the first step, "
                              "found none for {} of {}: {}",
                              missing.size(), active_.size(), fmt::join(missing, ", "));
  dist::require_all(worker_.control(), text, static_cast<int>(ExitCode::kInternal), "gradient-flow check");
}

Trainer::StepReport Trainer::run_step(std::int64_t step) {
  const auto& place = worker_.place();
  const auto& split = dataset_.split("train");
  const auto batch = sampler_.batch(step);
  const auto num_micro_batches = static_cast<int>(batch.micro_batches.size());
  const auto range = dist::plan_micro_batches(num_micro_batches, place.num_replicas, place.replica_index);

  StepReport report;
  report.epoch = batch.epoch;
  report.rows = batch.num_rows;
  std::vector<MicroBatch> micro_batches;
  for (int m = range.first; m < range.end; ++m) {
    micro_batches.push_back(
        make_micro_batch(worker_.backbone(), m,
                         split.collate(batch.micro_batches[static_cast<std::size_t>(m)], config_.data.max_length,
                                       config_.data.pad_multiple, config_.data.fixed_length)));
    report.tokens += micro_batches.back().shape.rows * micro_batches.back().shape.tokens;
  }

  // Position in active_ of each trained tensor, -1 for inert ones.
  std::vector<int> active_index(worker_.method().trained().size(), -1);
  for (std::size_t i = 0; i < active_.size(); ++i) {
    active_index[static_cast<std::size_t>(active_[i])] = static_cast<int>(i);
  }
  std::vector<int> contributions(active_.size(), 0);
  std::int64_t num_targets = 0;
  for (const auto& rows : batch.micro_batches) {
    for (const auto row : rows) {
      num_targets += split.num_targets(row, config_.data.max_length);
    }
  }
  const auto loss = [&, task = dataset_.info().task](const at::Tensor& logits, const model::NamedTensors& inputs) {
    return task_loss(task, logits, inputs, num_targets);
  };
  sync_->begin(num_micro_batches, range);
  const RandomKey key{config_.train.seed, static_cast<std::uint64_t>(step), 0};
  const auto losses = worker_.executor().train_step(dist::schedule_kind_from(config_.parallel.schedule), micro_batches,
                                                    key, loss, [&](int m, int index, at::Tensor gradient) {
                                                      const int active = active_index[static_cast<std::size_t>(index)];
                                                      if (active >= 0) {
                                                        contributions[static_cast<std::size_t>(active)] +=
                                                            gradient.defined() ? 1 : 0;
                                                        sync_->ready(active, m, std::move(gradient));
                                                      }
                                                    });
  auto sums = sync_->finish();
  if (step == start_step_) {
    check_gradient_flow(contributions, range.size() > 0);
  }
  tied_->add(sums);
  std::vector<at::Tensor> gradients;  // as the optimizer has its parameters
  for (const auto updated : updated_) {
    gradients.push_back(std::move(sums[updated]));
  }

  // One exchange a step. A loss or norm is written by one rank and zero elsewhere, so the sum is exact and alike
  // everywhere. Layout: [stop, tokens, losses by micro-batch, squared norms by (stage, tensor)].
  const std::int64_t norms_begin = 2 + num_micro_batches;
  const std::int64_t total_tensors =
      std::accumulate(tensors_of_stage_.begin(), tensors_of_stage_.end(), std::int64_t{0});
  const std::int64_t own_begin =
      std::accumulate(tensors_of_stage_.begin(), tensors_of_stage_.begin() + place.stage_index, norms_begin);
  auto exchange = at::zeros({norms_begin + total_tensors}, at::kDouble);
  auto* slots = exchange.mutable_data_ptr<double>();
  slots[0] = stop_requested_.load() ? 1 : 0;
  if (place.is_first_stage()) {
    slots[1] = static_cast<double>(report.tokens);
  }
  for (std::size_t i = 0; i < losses.size(); ++i) {
    slots[2 + micro_batches[i].index] = losses[i];
  }
  if (place.replica_index == 0) {
    const auto squared = optim::squared_norms(gradients);
    auto* slot = slots + own_begin;
    for (std::size_t i = 0; i < squared.size(); ++i) {
      if (!trained_at(updated_[i]).is_copy) {
        *slot++ = squared[i];
      }
    }
  }
  worker_.control().all_reduce(exchange).wait();
  slots = exchange.mutable_data_ptr<double>();

  report.stop_requested = slots[0] > 0;
  report.tokens = static_cast<std::int64_t>(slots[1]);
  report.loss = std::accumulate(slots + 2, slots + norms_begin, 0.0);
  report.gradient_norm = optim::combine_norm({slots + norms_begin, slots + norms_begin + total_tensors});
  report.learning_rate = optim::learning_rate_at(config_.optimizer, step, num_steps());
  if (!std::isfinite(report.loss) || !std::isfinite(report.gradient_norm)) {
    throw NumericError(
        fmt::format("step {}: expected a finite loss and gradient norm, found loss {} and norm {}; lower "
                    "optimizer.learning_rate, use model.compute_type=fp32 or bf16, or look at the rows of this batch",
                    step + 1, report.loss, report.gradient_norm));
  }
  optim::clip_by_norm(gradients, report.gradient_norm, config_.optimizer.clip_norm);
  optimizer_->step(gradients, report.learning_rate);
  return report;
}

void Trainer::run_evaluation(std::int64_t steps_done) {
  if (!dataset_.has_split("validation")) {
    return;
  }
  const auto metrics = evaluate(worker_, dataset_, "validation", config_.data, config_.train.evaluation_batch_size);
  const double value = metrics.at(metric_);
  const bool is_best = !best_value_ || is_better(metric_, value, *best_value_);
  if (is_best) {
    best_value_ = value;
    best_step_ = steps_done;
    evaluations_since_best_ = 0;
    if (config_.train.restore_best) {
      for (const auto& [name, tensor] : worker_.result()) {
        best_tensors_[name] = tensor.clone();
      }
    }
  } else {
    ++evaluations_since_best_;
  }
  progress_.end_line();
  log_info("train", "validation after step {}: {} {:.4f}{}, loss {:.4f}", steps_done, metric_, value,
           is_best ? " (best)" : "", metrics.at("loss"));
  if (is_writer()) {
    nlohmann::json record = {
        {"kind", "evaluation"}, {"split", "validation"}, {"step", steps_done}, {"is_best", is_best}};
    record.update(nlohmann::json(metrics));
    folder_.append_metrics(record);
  }
}

TrainSummary Trainer::run() {
  if (is_writer()) {
    folder_.create();
  }
  worker_.control().barrier();
  resume();
  if (is_writer()) {
    // Only now: a run that refuses to resume leaves its folder as it was.
    write_file_durably(folder_.config_file(), config_.config_text);
  }
  if (start_step_ == 0) {
    start_by_importance(worker_, dataset_, sampler_, config_.data, config_.gradient_sync);
  }
  record_memory();
  const auto steps = num_steps();
  const auto per_epoch = sampler_.steps_per_epoch();
  const auto is_due = [&](std::int64_t done, std::int64_t every) {
    return done == steps || (every > 0 ? done % every == 0 : done % per_epoch == 0);
  };
  bool is_stopped = false;
  std::int64_t done = start_step_;
  while (done < steps) {
    if (events_->run_before(done)) {
      progress_.end_line();
      log_info("train", "new subspaces before step {}; {:.1f} s for such events so far", done + 1, events_->seconds());
    }
    progress_.resume();
    const auto reduced_before = ledger_.traffic("all_gather", "gradient") + ledger_.traffic("all_reduce", "gradient");
    const double seconds_before = progress_.seconds();
    const auto report = run_step(done);
    reduced_bytes_ =
        ledger_.traffic("all_gather", "gradient") + ledger_.traffic("all_reduce", "gradient") - reduced_before;
    ++done;
    progress_.step(
        {done, steps, report.epoch, report.loss, report.rows, report.tokens, peak_allocated_bytes(worker_.device())});
    progress_.pause();
    if (is_writer()) {
      folder_.append_metrics({{"kind", "train"},
                              {"step", done},
                              {"epoch", report.epoch},
                              {"loss", report.loss},
                              {"gradient_norm", report.gradient_norm},
                              {"learning_rate", report.learning_rate},
                              {"rows", report.rows},
                              {"tokens", report.tokens},
                              {"seconds", progress_.seconds() - seconds_before}});
    }
    if (is_due(done, config_.train.evaluate_every_steps)) {
      run_evaluation(done);
    }
    is_stopped = report.stop_requested || (done == config_.train.stop_at_step && done < steps);
    const bool has_lost_patience = config_.train.patience > 0 && evaluations_since_best_ >= config_.train.patience;
    if (is_stopped || has_lost_patience || is_due(done, config_.checkpoint.every_steps)) {
      save(done);
    }
    if (is_stopped || has_lost_patience) {
      if (has_lost_patience) {
        log_info("train", "no better {} in {} evaluations: stopping early after step {}", metric_,
                 evaluations_since_best_, done);
      }
      break;
    }
  }
  if (!is_stopped && config_.train.restore_best && !best_tensors_.empty()) {
    worker_.load_result(best_tensors_);
  }
  TrainSummary summary{done, is_stopped, best_value_.value_or(0), metric_, best_step_, summarize(done, is_stopped)};
  if (!is_stopped && dataset_.has_split("test")) {
    summary.record["test"] = evaluate(worker_, dataset_, "test", config_.data, config_.train.evaluation_batch_size);
  }
  if (is_writer()) {
    write_file_durably(folder_.summary_file(), summary.record.dump(2) + "\n");
  }
  return summary;
}

}  // namespace espalier::train
