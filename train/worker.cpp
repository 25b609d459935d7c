// SPDX-License-Identifier: Apache-2.0
#include "train/worker.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

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

Worker::Worker(const WorkerConfig& config, const Ranks& ranks)
    : backbone_(model::read_backbone(config.model.path, config.head)),
      weights_(open_weights(config.model, backbone_)),
      mesh_(dist::make_mesh(ranks.control, ranks.device, static_cast<int>(config.parallel.stages),
                            static_cast<int>(config.parallel.replicas))) {
  model_digest_ = dist::broadcast_text(ranks.control, ranks.control.rank() == 0 ? weights_->digest() : std::string());
  const auto stages = model::plan_stages(backbone_, mesh_.place.num_stages, config.parallel.first_blocks);
  const auto range = stages[static_cast<std::size_t>(mesh_.place.stage_index)];
  if (mesh_.place.is_first_stage()) {
    model::refuse_unknown_tensors(backbone_, *weights_);
  }
  const model::SliceOptions options{compute_type_from(config.model.compute_type),
                                    device_from(config.model.device, ranks.node_rank), config.seed};
  slice_ = std::make_unique<model::StageSlice>(backbone_, range, *weights_, options);
  method_ = peft::make_method(config.peft, *slice_, *weights_, config.seed);
  executor_ = std::make_unique<StageExecutor>(mesh_, *slice_, *method_, range.end);
  log_debug("worker", "stage {} of {}, replica {} of {}: layers {} to {}", mesh_.place.stage_index,
            mesh_.place.num_stages, mesh_.place.replica_index, mesh_.place.num_replicas, range.first, range.end - 1);
}

ParameterCount Worker::count_parameters() {
  auto counts = at::zeros({2}, at::kLong);
  if (mesh_.place.replica_index == 0) {
    for (const auto& tensor : method_->trained()) {
      counts[0] += tensor.is_copy ? 0 : tensor.value.numel();
    }
    const auto copies = peft::find_copies(backbone_, *weights_);
    for (const auto& layer : slice_->layers()) {
      const auto& plan = layer->plan();
      layer->visit_weights(
          [&](const std::string& role, const at::Tensor& slot, const std::vector<std::int64_t>& /*shape*/) {
            const bool is_counted =
                !copies.contains(plan.name + "." + role) && !backbone_.family->stored_weight(plan, role).is_buffer;
            if (is_counted && slot.defined() && !slot.requires_grad()) {
              counts[1] += slot.numel();
            }
          });
    }
  }
  mesh_.control->all_reduce(counts).wait();
  return {counts[0].item<std::int64_t>(), counts[1].item<std::int64_t>()};
}

MicroBatch make_micro_batch(const model::Backbone& backbone, int index, model::NamedTensors inputs) {
  model::complete_decoder_inputs(backbone, inputs);
  const auto shape = model::batch_shape(backbone, inputs);
  return {index, std::move(inputs), shape};
}

std::map<std::string, at::Tensor> Worker::result() const {
  std::map<std::string, at::Tensor> tensors = method_->kept_tensors();
  for (const auto& trained : method_->trained()) {
    tensors.emplace(trained.name, trained.value.detach());
  }
  return tensors;
}

void Worker::load_result(const std::map<std::string, at::Tensor>& tensors) {
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
  for (const auto& trained : method_->trained()) {
    load(trained.name, trained.value);
  }
  for (const auto& [name, value] : method_->kept_tensors()) {
    load(name, value);
  }
}

}  // namespace espalier::train
