// SPDX-License-Identifier: Apache-2.0
#include "train/importance.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

#include "common/log.h"
#include "model/input_names.h"
#include "train/device.h"
#include "train/stage_executor.h"
#include "train/task.h"
#include "train/tied_gradients.h"

namespace espalier::train {
namespace {

/// Rows between two sums over the replicas: part of the order in which they are added, so the same for every layout.
constexpr std::size_t kRoundRows = 32;

std::vector<std::int64_t> first_rows(const data::Sampler& sampler, std::int64_t num_rows) {
  std::vector<std::int64_t> rows;
  for (std::int64_t step = 0; step < sampler.steps_per_epoch(); ++step) {
    for (const auto& micro_batch : sampler.batch(step).micro_batches) {
      for (const auto row : micro_batch) {
        if (static_cast<std::int64_t>(rows.size()) == num_rows) {
          return rows;
        }
        rows.push_back(row);
      }
    }
  }
  return rows;
}

/// The backbone without the images that it reads behind its text.
model::Backbone text_alone(model::Backbone backbone) {
  if (auto& embedding = backbone.chain.front().embedding) {
    embedding->visual.reset();
  }
  return backbone;
}

/// A second copy of the slice in fp32, every weight of which has a gradient.
class FullCopy {
 public:
  FullCopy(Worker& worker, const WorkerObjective& objective, const data::Dataset& dataset, const data::DataConfig& data,
           const dist::GradientSyncConfig& gradient_sync)
      : worker_(worker),
        split_(dataset.split("train")),
        info_(objective.config.data),
        data_(data),
        slice_(text_alone(objective.backbone), worker.slice().range(), worker.weights(),
               {at::kFloat, worker.device(), objective.seed}),
        method_(peft::make_method({.method = "full"}, slice_, worker.weights(), /*seed=*/0)),
        executor_(worker.mesh(), slice_, *method_) {
    std::vector<std::string> names;
    std::vector<at::Tensor> values;
    for (const auto& tensor : method_->trained()) {
      names.push_back(tensor.name);
      values.push_back(tensor.value);
    }
    tied_ = std::make_unique<TiedGradients>(worker.mesh(), names);
    sync_ = dist::make_gradient_sync(gradient_sync, *worker.mesh().replicas, values);
  }

  /// Sums of squares over `rows`, by trained tensor; the same on every replica.
  std::vector<at::Tensor> sum_squares(const std::vector<std::int64_t>& rows) {
    const auto& place = worker_.place();
    const auto count = static_cast<int>(rows.size());
    const auto range = dist::plan_micro_batches(count, place.num_replicas, place.replica_index);
    sync_->begin(count, range);
    for (int i = range.first; i < range.end; ++i) {
      const auto squares = squares_of(rows[static_cast<std::size_t>(i)]);
      for (std::size_t t = 0; t < squares.size(); ++t) {
        sync_->ready(static_cast<int>(t), i, squares[t]);
      }
    }
    return sync_->finish();
  }

  [[nodiscard]] const std::vector<peft::TrainedTensor>& trained() const { return method_->trained(); }

 private:
  [[nodiscard]] MicroBatch read(std::int64_t row) const {
    auto micro_batch = make_micro_batch(worker_.backbone(), 0, split_, {row}, data_);
    if (worker_.backbone().visual() != nullptr) {
      for (const auto* name : model::kVisualInputs) micro_batch.inputs.erase(name);
      micro_batch.shape = model::text_only(micro_batch.shape);
    }
    return micro_batch;
  }

  std::vector<at::Tensor> squares_of(std::int64_t row) {
    const std::vector<MicroBatch> one = {read(row)};
    const auto loss = [&](std::size_t /*objective*/, const at::Tensor& logits, const model::NamedTensors& inputs) {
      return task_loss(info_.task, logits, with_labels(info_, inputs),
                       num_targets(info_, split_, row, data_.row_limit()));
    };
    std::vector<at::Tensor> gradients;
    for (const auto& tensor : method_->trained()) {
      gradients.push_back(at::zeros_like(tensor.value.detach()));
    }
    executor_.train_step(
        dist::ScheduleKind::k1F1B, one, {}, loss,
        [&](int /*micro_batch*/, int index, at::Tensor gradient) {
          if (gradient.defined()) gradients[static_cast<std::size_t>(index)] = std::move(gradient);
        },
        /*is_training=*/false);
    tied_->add(gradients);
    for (auto& gradient : gradients) {
      gradient = gradient.square();
    }
    return gradients;
  }

  Worker& worker_;
  const data::Split& split_;
  data::DatasetInfo info_;
  data::DataConfig data_;
  model::StageSlice slice_;
  std::unique_ptr<peft::Method> method_;
  StageExecutor executor_;
  std::unique_ptr<TiedGradients> tied_;
  std::unique_ptr<dist::GradientSync> sync_;
};

using Importance = std::map<std::string, at::Tensor>;

Importance fisher_information(FullCopy copy, const std::vector<std::int64_t>& rows) {
  std::vector<at::Tensor> sums;
  for (std::size_t first = 0; first < rows.size(); first += kRoundRows) {
    const std::vector<std::int64_t> round(
        rows.begin() + static_cast<std::ptrdiff_t>(first),
        rows.begin() + static_cast<std::ptrdiff_t>(std::min(first + kRoundRows, rows.size())));
    auto squares = copy.sum_squares(round);
    if (sums.empty()) {
      sums = std::move(squares);
      continue;
    }
    for (std::size_t t = 0; t < sums.size(); ++t) {
      sums[t].add_(squares[t]);
    }
  }
  Importance by_name;
  for (std::size_t t = 0; t < sums.size(); ++t) {
    by_name.emplace(copy.trained()[t].name, sums[t]);  // the places of a tied weight are equal
  }
  return by_name;
}

/// Collective: the stages of a replica, in order.
void start(Worker& worker, peft::ImportanceStart& method, const Importance& importance) {
  const auto& place = worker.place();
  auto& pipeline = *worker.mesh().stage_control;
  at::Tensor below;
  if (!place.is_first_stage()) {
    below = at::empty({method.num_handed_on()}, at::kLong);
    pipeline.recv(below, place.stage_index - 1, dist::Channel::kControl).wait();
  }
  const auto above = method.start(
      [&](const model::LayerPlan& layer, const std::string& role) { return importance.at(layer.name + "." + role); },
      below);
  if (!place.is_last_stage()) {
    pipeline.send(above, place.stage_index + 1, dist::Channel::kControl).wait();
  }
}

}  // namespace

void start_by_importance(Worker& worker, const data::Dataset& dataset, const data::Sampler& sampler,
                         const data::DataConfig& data, const dist::GradientSyncConfig& gradient_sync) {
  const auto begin = std::chrono::steady_clock::now();
  // Objectives of one task measure the same.
  std::map<std::tuple<std::int64_t, std::string, std::uint64_t>, Importance> measured;
  for (std::size_t k = 0; k < worker.num_objectives(); ++k) {
    const auto& objective = worker.objective(k);
    if (objective.part.importance_start == nullptr) {
      continue;
    }
    const auto rows = first_rows(sampler, objective.part.importance_start->num_rows());
    const auto [found, is_new] = measured.try_emplace(
        {static_cast<std::int64_t>(rows.size()), objective.config.data.label_tensor, objective.seed});
    if (is_new) {
      log_info("train", "measuring how much each weight of the backbone matters, on {} training rows", rows.size());
      found->second = fisher_information({worker, objective, dataset, data, gradient_sync}, rows);
    }
    start(worker, *objective.part.importance_start, found->second);
  }
  if (!measured.empty()) {
    reset_peak_bytes(worker.device());
    log_info("train", "the method starts from it, after {:.1f} s",
             std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
}

}  // namespace espalier::train
