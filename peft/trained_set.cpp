// SPDX-License-Identifier: Apache-2.0
#include "peft/trained_set.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "common/error.h"
#include "model/weight_loader.h"

namespace espalier::peft {
at::Tensor stored_weight(const model::Backbone& backbone, const model::LayerPlan& layer, const std::string& role,
                         const model::WeightSource& weights) {
  const model::StoredWeight stored = backbone.family->stored_weight(layer, role);
  const auto present = model::present_names(stored, weights);
  if (present.empty()) {
    throw ConfigError(fmt::format("{}: {}.{} is missing; expected a tensor named {}", backbone.folder.string(),
                                  layer.name, role, fmt::join(stored.names, " or ")));
  }
  return model::stored_part(stored, weights.get(present.front()));
}

TrainedTensor make_trained(std::string name, const at::Tensor& value, at::Device device) {
  at::Tensor leaf = at::empty(value.sizes(), at::TensorOptions().dtype(at::kFloat).device(device));
  leaf.copy_(value);
  leaf.requires_grad_(true);
  return {.name = std::move(name), .value = std::move(leaf), .decays = value.dim() > 1};
}

void own_weight(model::StageSlice& slice, const model::LayerPlan& layer, const std::string& role,
                const model::WeightSource& weights, at::Tensor& slot) {
  const bool is_exact = slot.scalar_type() == at::kFloat;
  slice.make_trainable(slot);
  if (!is_exact) {
    slot.detach().copy_(stored_weight(slice.backbone(), layer, role, weights));
  }
}

Copies find_copies(const model::Backbone& backbone, const model::WeightSource& weights) {
  std::map<std::pair<std::string, std::int64_t>, std::string> first_roles;  // by stored name and part
  Copies copies;
  model::visit_planned_weights(backbone, [&](const model::LayerPlan& layer, const std::string& role,
                                             const std::vector<std::int64_t>& /*shape*/) {
    const model::StoredWeight stored = backbone.family->stored_weight(layer, role);
    const auto present = model::present_names(stored, weights);
    if (present.empty()) {
      return;
    }
    const std::string name = layer.name + "." + role;
    const auto [first, is_first] = first_roles.emplace(std::pair(present.front(), stored.part), name);
    if (!is_first) {
      copies.emplace(name, first->second);
    }
  });
  return copies;
}

namespace {

void train_weights(model::StageSlice& slice, model::Layer& layer, const model::WeightSource& weights,
                   const Copies& copies, bool of_task_alone, std::vector<TrainedTensor>& trained) {
  const model::LayerPlan& plan = layer.plan();
  layer.visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& shape) {
    const model::StoredWeight stored = slice.backbone().family->stored_weight(plan, role);
    if (stored.is_buffer || (of_task_alone && !stored.is_task)) {
      return;
    }
    std::string name = plan.name + "." + role;
    const auto original = copies.find(name);
    const bool is_copy = original != copies.end();
    if (is_copy) {
      name = original->second;
    }
    const auto on_slice =
        std::find_if(trained.begin(), trained.end(), [&](const TrainedTensor& tensor) { return tensor.name == name; });
    if (on_slice != trained.end()) {
      // One memory, so that one update serves all; leaves of their own, since only gradients that are summed over the
      // micro-batches before they are added do not depend on the layout.
      slot = on_slice->value.detach().requires_grad_();
    } else {
      own_weight(slice, plan, role, weights, slot);
    }
    trained.push_back({.name = std::move(name), .value = slot, .decays = shape.size() > 1, .is_copy = is_copy});
  });
}

}  // namespace

void train_layer(model::StageSlice& slice, model::Layer& layer, const model::WeightSource& weights,
                 const Copies& copies, std::vector<TrainedTensor>& trained) {
  train_weights(slice, layer, weights, copies, /*of_task_alone=*/false, trained);
}

void train_task_weights(model::StageSlice& slice, model::Layer& layer, const model::WeightSource& weights,
                        std::vector<TrainedTensor>& trained) {
  train_weights(slice, layer, weights, /*copies=*/{}, /*of_task_alone=*/true, trained);
}

void train_chosen(model::StageSlice& slice, model::Layer& layer, const model::WeightSource& weights,
                  const WeightChoice& is_wanted, std::vector<TrainedTensor>& trained) {
  layer.visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& shape) {
    if (!is_wanted(role, shape)) return;
    own_weight(slice, layer.plan(), role, weights, slot);
    trained.push_back({.name = layer.plan().name + "." + role, .value = slot, .decays = false});
  });
}

}  // namespace espalier::peft
