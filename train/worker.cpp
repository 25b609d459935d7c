// SPDX-License-Identifier: Apache-2.0
#include "train/worker.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include "common/check.h"
#include "common/error.h"
#include "common/log.h"
#include "dist/agree.h"
#include "peft/trained_set.h"
#include "train/device.h"

namespace espalier::train {

std::unique_ptr<model::WeightSource> open_weights(const ModelConfig& config, const model::Backbone& backbone) {
  return config.random_weights ? model::random_backbone_weights(backbone, /*seed=*/1)
                               : model::open_model_folder(config.path);
}

namespace {

std::vector<WorkerObjective> plan_objectives(const WorkerConfig& config) {
  ESPALIER_CHECK(!config.objectives.empty(), "a worker needs an objective");
  std::vector<WorkerObjective> planned;
  for (const auto& objective : config.objectives) {
    planned.push_back({objective,
                       {.name = objective.name},
                       model::read_backbone(config.model.path, objective.head),
                       peft::trained_seed(objective.peft, config.seed)});
  }
  return planned;
}

}  // namespace

Worker::Worker(const WorkerConfig& config, const Ranks& ranks)
    : objectives_(plan_objectives(config)),
      weights_(open_weights(config.model, backbone())),
      mesh_(dist::make_mesh(ranks.control, ranks.device, static_cast<int>(config.parallel.stages),
                            static_cast<int>(config.parallel.replicas))) {
  model_digest_ = dist::broadcast_text(ranks.control, ranks.control.rank() == 0 ? weights_->digest() : std::string());
  const auto stages = model::plan_stages(backbone(), mesh_.place.num_stages, config.parallel.first_blocks);
  const auto range = stages[static_cast<std::size_t>(mesh_.place.stage_index)];
  if (mesh_.place.is_first_stage()) {
    model::refuse_unknown_tensors(backbone(), *weights_);
  }
  const model::SliceOptions options{.compute_type = compute_type_from(config.model.compute_type),
                                    .device = device_from(config.model.device, ranks.node_rank),
                                    .seed = objective().seed,
                                    .drop_path = config.model.drop_path};
  slice_ = std::make_unique<model::StageSlice>(backbone(), range, *weights_, options);
  if (objectives_.size() == 1 && objective().part.name.empty()) {
    method_ = peft::make_method(objective().config.peft, *slice_, *weights_, config.seed);
  } else {
    std::vector<peft::ObjectiveRequest> requests;
    for (const auto& objective : objectives_) {
      requests.push_back({objective.config.name, objective.config.peft, objective.backbone});
    }
    method_ = peft::make_joint_method(requests, *slice_, *weights_, config.seed, config.batched);
  }
  auto parts = method_->objectives();
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    objectives_[k].part = std::move(parts[k]);
  }
  executor_ = std::make_unique<StageExecutor>(mesh_, *slice_, *method_);
  log_debug("worker", "stage {} of {}, replica {} of {}: layers {} to {}", mesh_.place.stage_index,
            mesh_.place.num_stages, mesh_.place.replica_index, mesh_.place.num_replicas, range.first, range.end - 1);
}

ParameterCount Worker::count_parameters() {
  const auto num_objectives = static_cast<std::int64_t>(objectives_.size());
  auto counts = at::zeros({num_objectives + 1}, at::kLong);
  if (mesh_.place.replica_index == 0) {
    for (std::int64_t k = 0; k < num_objectives; ++k) {
      for (const auto& tensor : trained(static_cast<std::size_t>(k))) {
        counts[k] += tensor.is_copy ? 0 : tensor.value.numel();
      }
    }
    const auto copies = peft::find_copies(backbone(), *weights_);
    for (const auto& layer : slice_->layers()) {
      const auto& plan = layer->plan();
      layer->visit_weights(
          [&](const std::string& role, const at::Tensor& slot, const std::vector<std::int64_t>& /*shape*/) {
            const bool is_counted =
                !copies.contains(plan.name + "." + role) && !backbone().family->stored_weight(plan, role).is_buffer;
            if (is_counted && slot.defined() && !slot.requires_grad()) {
              counts[num_objectives] += slot.numel();
            }
          });
    }
  }
  mesh_.control->all_reduce(counts).wait();
  const auto* values = counts.const_data_ptr<std::int64_t>();
  return {{values, values + num_objectives}, values[num_objectives]};
}

MicroBatch make_micro_batch(const model::Backbone& backbone, int index, model::NamedTensors inputs) {
  model::complete_decoder_inputs(backbone, inputs);
  const auto shape = model::batch_shape(backbone, inputs);
  return {index, std::move(inputs), shape};
}

MicroBatch make_micro_batch(const model::Backbone& backbone, int index, const data::Split& split,
                            const std::vector<std::int64_t>& rows, const data::DataConfig& config) {
  return make_micro_batch(backbone, index,
                          split.collate(rows, config.row_limit(), config.pad_multiple, config.fixed_length));
}

std::vector<data::DatasetInfo> Worker::datasets() const {
  std::vector<data::DatasetInfo> datasets;
  datasets.reserve(objectives_.size());
  for (const auto& objective : objectives_) {
    datasets.push_back(objective.config.data);
  }
  return datasets;
}

std::span<const peft::TrainedTensor> Worker::trained(std::size_t objective) const {
  const auto& part = objectives_[objective].part;
  return std::span(method_->trained())
      .subspan(static_cast<std::size_t>(part.first_trained),
               static_cast<std::size_t>(part.end_trained - part.first_trained));
}

std::map<std::string, at::Tensor> Worker::result(std::size_t objective) const {
  std::map<std::string, at::Tensor> tensors = method_->kept_tensors();
  const auto prefix = peft::objective_prefix(objectives_[objective].part.name).size();
  for (const auto& trained : trained(objective)) {
    tensors.emplace(trained.name.substr(prefix), trained.value.detach());
  }
  return tensors;
}

void Worker::load_result(const std::map<std::string, at::Tensor>& tensors, std::size_t objective) {
  const at::NoGradGuard no_grad;
  const auto load = [&](const std::string& name, const at::Tensor& value) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) {
      throw ConfigError(
          fmt::format("adapter: expected tensor '{}' of method {}, found {} other tensors; the adapter was made with "
                      "other peft options or for another backbone",
                      name, method_->name(), tensors.size()));
    }
    if (found->second.sizes() != value.sizes()) {
      throw ConfigError(fmt::format("adapter: tensor '{}': expected shape [{}], found [{}]", name,
                                    fmt::join(value.sizes(), ", "), fmt::join(found->second.sizes(), ", ")));
    }
    value.copy_(found->second);
  };
  // A tied tensor has a place of its own on every stage that reads it, each to be loaded.
  const auto prefix = peft::objective_prefix(objectives_[objective].part.name).size();
  for (const auto& trained : trained(objective)) {
    load(trained.name.substr(prefix), trained.value);
  }
  for (const auto& [name, value] : method_->kept_tensors()) {
    load(name, value);
  }
}

}  // namespace espalier::train
