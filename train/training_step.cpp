// SPDX-License-Identifier: Apache-2.0
#include "train/training_step.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <cmath>
#include <numeric>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "dist/agree.h"
#include "model/loss.h"
#include "train/task.h"

namespace espalier::train {
namespace {

std::int64_t count_targets(const data::DatasetInfo& info, const data::GlobalBatch& batch, const data::Split& split,
                           std::int64_t max_length) {
  std::int64_t count = 0;
  for (const auto& rows : batch.micro_batches) {
    for (const auto row : rows) {
      count += num_targets(info, split, row, max_length);
    }
  }
  return count;
}

/// Tokens that the model attends to, in its input and in the text that it learns to write. Of images, patches.
std::int64_t count_tokens(const MicroBatch& micro_batch, data::TaskKind task) {
  const auto& [index, inputs, shape] = micro_batch;
  const auto mask = inputs.find("attention_mask");
  if (mask == inputs.end()) {
    return shape.rows * shape.tokens;
  }
  const auto targets = task == data::TaskKind::kSeq2Seq ? model::count_targets(inputs.at("labels"), false) : 0;
  return mask->second.sum().item<std::int64_t>() + shape.rows * shape.visual_tokens + targets;
}

}  // namespace

/// What the ranks exchange once a step. A loss or norm is written by one rank and zero elsewhere, so the sum is exact
/// and alike everywhere. Layout: [stop, tokens, of each objective: losses by micro-batch, squared norms by (stage,
/// tensor)].
class TrainingStep::Exchange {
 public:
  Exchange(std::int64_t num_micro_batches, const std::vector<std::vector<std::int64_t>>& tensors_of_stage) {
    std::int64_t size = 2;
    for (const auto& of_stages : tensors_of_stage) {
      losses_.push_back(size);
      size += num_micro_batches;
      norms_.push_back(size);
      size += std::accumulate(of_stages.begin(), of_stages.end(), std::int64_t{0});
      ends_.push_back(size);
    }
    num_micro_batches_ = num_micro_batches;
    values_ = at::zeros({size}, at::kDouble);
  }

  double& stop() { return data()[0]; }
  double& tokens() { return data()[1]; }
  double& loss(std::size_t objective, int micro_batch) { return data()[losses_[objective] + micro_batch]; }
  double* norms(std::size_t objective) { return data() + norms_[objective]; }
  [[nodiscard]] const at::Tensor& values() const { return values_; }

  double sum_losses(std::size_t objective) {
    const double* first = data() + losses_[objective];
    return std::accumulate(first, first + num_micro_batches_, 0.0);
  }
  double combine_norms(std::size_t objective) {
    return optim::combine_norm({norms(objective), data() + ends_[objective]});
  }

 private:
  double* data() { return values_.mutable_data_ptr<double>(); }

  at::Tensor values_;
  std::int64_t num_micro_batches_ = 0;
  std::vector<std::int64_t> losses_, norms_, ends_;  ///< where they begin, and where the norms end, by objective
};

bool StepReport::OfObjective::is_finite() const {
  return std::isfinite(loss) && std::isfinite(gradient_norm);
}

TrainingStep::TrainingStep(const Config& config, Worker& worker, std::vector<ObjectiveState>& objectives)
    : config_(config), worker_(worker), objectives_(objectives) {
  const auto& place = worker.place();
  auto counts = at::zeros({static_cast<std::int64_t>(objectives.size()), place.num_stages}, at::kLong);
  for (std::size_t k = 0; k < objectives.size(); ++k) {
    first_active_.push_back(active_.size());
    for (const int index : objectives[k].active()) {
      active_.push_back(index);
      if (place.replica_index == 0 && !trained_at(active_.size() - 1).is_copy) {
        counts[static_cast<std::int64_t>(k)][place.stage_index] += 1;
      }
    }
  }
  worker.control().all_reduce(counts).wait();
  for (std::size_t k = 0; k < objectives.size(); ++k) {
    const auto* of_stages = counts.const_data_ptr<std::int64_t>() + static_cast<std::int64_t>(k) * place.num_stages;
    tensors_of_stage_.emplace_back(of_stages, of_stages + place.num_stages);
    if (std::accumulate(of_stages, of_stages + place.num_stages, std::int64_t{0}) == 0) {
      dist::throw_agreed<ConfigError>(
          fmt::format("peft.method={}: expected something to train, found nothing: a language model has no head of the "
                      "task's; choose another method",
                      worker.method().name()));
    }
  }
  std::vector<at::Tensor> tensors;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < active_.size(); ++i) {
    tensors.push_back(trained_at(i).value);
    names.push_back(trained_at(i).name);
  }
  active_index_.assign(worker.method().trained().size(), -1);
  for (std::size_t i = 0; i < active_.size(); ++i) {
    active_index_[static_cast<std::size_t>(active_[i])] = static_cast<int>(i);
  }
  sync_ = dist::make_gradient_sync(config.gradient_sync, *worker.mesh().replicas, tensors);
  tied_ = std::make_unique<TiedGradients>(worker.mesh(), names);
}

const peft::TrainedTensor& TrainingStep::trained_at(std::size_t active) const {
  return worker_.method().trained()[static_cast<std::size_t>(active_[active])];
}

std::int64_t TrainingStep::gradient_bytes() const {
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < active_.size(); ++i) {
    bytes += static_cast<std::int64_t>(trained_at(i).value.nbytes());
  }
  return bytes;
}

void TrainingStep::check_gradient_flow(const std::vector<int>& contributions, bool had_micro_batches) const {
  std::vector<std::string> missing;
  for (std::size_t i = 0; had_micro_batches && i < active_.size(); ++i) {
    if (contributions[i] == 0) {
      missing.push_back(trained_at(i).name);
    }
  }
  const auto text = missing.empty() ? std::string()
                                    : fmt::format(
                                          "gradient flow: expected a gradient for every trained tensor in the first "
                                          "step, found none for {} of {}: {}",
                                          missing.size(), active_.size(), fmt::join(missing, ", "));
  dist::require_all(worker_.control(), text, ExitCode::kInternal, "gradient-flow check");
}

std::vector<MicroBatch> TrainingStep::make_micro_batches(const data::GlobalBatch& batch, const data::Split& split,
                                                         dist::MicroBatchRange range) const {
  std::vector<MicroBatch> micro_batches;
  for (int m = range.first; m < range.end; ++m) {
    micro_batches.push_back(
        make_micro_batch(worker_.backbone(), m, split, batch.micro_batches[static_cast<std::size_t>(m)], config_.data));
  }
  return micro_batches;
}

std::vector<at::Tensor> TrainingStep::run_batch(std::int64_t step, const data::GlobalBatch& batch,
                                                const data::Split& split, const std::vector<MicroBatch>& micro_batches,
                                                dist::MicroBatchRange range, bool checks_flow, Losses& losses) {
  std::vector<std::int64_t> num_targets;
  std::vector<double> gradient_scales;
  for (const auto& objective : objectives_) {
    num_targets.push_back(count_targets(objective.data(), batch, split, config_.data.row_limit()));
    // Of a logit, where neither what is predicted nor what is wanted is above 1.
    const double largest =
        1 / static_cast<double>(num_targets.back()) + objective.distill_weight() / static_cast<double>(batch.num_rows);
    gradient_scales.push_back(gradient_scale(worker_.slice().options().compute_type, largest));
  }
  const auto loss = [&](std::size_t k, const at::Tensor& logits, const model::NamedTensors& inputs) {
    const auto& info = objectives_[k].data();
    const auto own_inputs = with_labels(info, inputs);
    const auto value = task_loss(info.task, logits, own_inputs, num_targets[k]);
    const double weight = objectives_[k].distill_weight();
    return weight > 0 ? value + weight * teacher_loss(info.task, logits, own_inputs, batch.num_rows) : value;
  };
  std::vector<int> contributions(active_.size(), 0);
  sync_->begin(static_cast<int>(batch.micro_batches.size()), range);
  const RandomKey key{config_.seed, static_cast<std::uint64_t>(step), 0};
  losses = worker_.executor().train_step(
      config_.schedule, micro_batches, key, loss,
      [&](int m, int index, at::Tensor gradient) {
        const int active = active_index_[static_cast<std::size_t>(index)];
        if (active >= 0) {
          contributions[static_cast<std::size_t>(active)] += gradient.defined() ? 1 : 0;
          sync_->ready(active, m, std::move(gradient));
        }
      },
      /*is_training=*/true, gradient_scales);
  auto sums = sync_->finish();
  if (checks_flow) {
    check_gradient_flow(contributions, range.size() > 0);
  }
  tied_->add(sums);
  return sums;
}

TrainingStep::Gradients TrainingStep::share_out(std::vector<at::Tensor> sums) const {
  Gradients gradients(objectives_.size());
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    for (const auto updated : objectives_[k].updated()) {
      gradients[k].push_back(std::move(sums[first_active_[k] + updated]));
    }
  }
  return gradients;
}

void TrainingStep::fill(Exchange& exchange, const std::vector<MicroBatch>& micro_batches, const Losses& losses,
                        const Gradients& gradients) const {
  const auto& place = worker_.place();
  for (const auto& micro_batch : micro_batches) {
    // Every stage has them.
    exchange.tokens() +=
        place.is_first_stage() ? static_cast<double>(count_tokens(micro_batch, objectives_.front().data().task)) : 0;
  }
  for (std::size_t i = 0; i < losses.size(); ++i) {
    for (std::size_t k = 0; k < objectives_.size(); ++k) {
      exchange.loss(k, micro_batches[i].index) = losses[i][k];
    }
  }
  for (std::size_t k = 0; place.replica_index == 0 && k < objectives_.size(); ++k) {
    const auto squared = optim::squared_norms(gradients[k]);
    const auto& of_stages = tensors_of_stage_[k];
    double* slot =
        exchange.norms(k) + std::accumulate(of_stages.begin(), of_stages.begin() + place.stage_index, std::int64_t{0});
    for (std::size_t i = 0; i < squared.size(); ++i) {
      if (!trained_at(first_active_[k] + objectives_[k].updated()[i]).is_copy) {
        *slot++ = squared[i];
      }
    }
  }
}

std::vector<StepReport::OfObjective> TrainingStep::update(std::int64_t step, Exchange& exchange, Gradients& gradients) {
  std::vector<StepReport::OfObjective> reports;
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    auto& objective = objectives_[k];
    const StepReport::OfObjective own{exchange.sum_losses(k), exchange.combine_norms(k),
                                      optim::learning_rate_at(objective.optimizer_config(), step, config_.num_steps)};
    reports.push_back(own);
    if (objective.is_training() && own.is_finite()) {
      optim::clip_by_norm(gradients[k], own.gradient_norm, objective.optimizer_config().clip_norm);
      objective.optimizer().step(gradients[k], own.learning_rate);
    }
  }
  return reports;
}

StepReport TrainingStep::run(std::int64_t step, const data::GlobalBatch& batch, const data::Split& split,
                             const std::atomic<bool>& stop_requested, bool checks_flow) {
  const auto& place = worker_.place();
  const auto num_micro_batches = static_cast<int>(batch.micro_batches.size());
  const auto range = dist::plan_micro_batches(num_micro_batches, place.num_replicas, place.replica_index);
  const auto micro_batches = make_micro_batches(batch, split, range);
  Losses losses;
  auto gradients = share_out(run_batch(step, batch, split, micro_batches, range, checks_flow, losses));

  Exchange exchange(num_micro_batches, tensors_of_stage_);
  fill(exchange, micro_batches, losses, gradients);
  exchange.stop() = stop_requested ? 1 : 0;
  worker_.control().all_reduce(exchange.values()).wait();

  return {.objectives = update(step, exchange, gradients),
          .epoch = batch.epoch,
          .rows = batch.num_rows,
          .tokens = static_cast<std::int64_t>(exchange.tokens()),
          .stop_requested = exchange.stop() > 0};
}

}  // namespace espalier::train
