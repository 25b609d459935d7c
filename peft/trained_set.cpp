// SPDX-License-Identifier: Apache-2.0
#include "peft/trained_set.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "common/error.h"

namespace espalier::peft {
namespace {

std::optional<std::string> stored_name(const model::StoredWeight& stored, const model::WeightSource& weights) {
  const auto found = std::find_if(stored.names.begin(), stored.names.end(),
                                  [&](const std::string& name) { return weights.contains(name); });
  return found == stored.names.end() ? std::nullopt : std::optional(*found);
}

}  // namespace

at::Tensor stored_weight(const model::Backbone& backbone, const model::LayerPlan& layer, const std::string& role,
                         const model::WeightSource& weights) {
  const model::StoredWeight stored = backbone.family->stored_weight(layer, role);
  const std::optional<std::string> name = stored_name(stored, weights);
  if (!name) {
    throw ConfigError(fmt::format("{}: {}.{} is missing; expected a tensor named {}", backbone.folder.string(),
                                  layer.name, role, fmt::join(stored.names, " or ")));
  }
  const at::Tensor value = stored.is_transposed ? weights.get(*name).t() : weights.get(*name);
  return stored.slice_end > 0 ? value.slice(/*dim=*/0, stored.slice_begin, stored.slice_end) : value;
}

TrainedTensor make_trained(std::string name, const at::Tensor& value, at::Device device) {
  at::Tensor leaf = at::empty(value.sizes(), at::TensorOptions().dtype(at::kFloat).device(device));
  leaf.copy_(value);
  leaf.requires_grad_(true);
  return {.name = std::move(name), .value = std::move(leaf), .decays = value.dim() > 1, .is_inert = false};
}

void train_layer(model::StageSlice& slice, model::Layer& layer, const model::WeightSource& weights,
                 std::vector<TrainedTensor>& trained) {
  const model::LayerPlan& plan = layer.plan();
  layer.visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& shape) {
    const bool is_exact = slot.scalar_type() == at::kFloat;
    slice.make_trainable(slot);
    if (!is_exact) {
      // The slot was rounded to the compute type; a weight that trains starts from what is stored.
      slot.detach().copy_(stored_weight(slice.backbone(), plan, role, weights));
    }
    trained.push_back({.name = plan.name + "." + role, .value = slot, .decays = shape.size() > 1, .is_inert = false});
  });
}

}  // namespace espalier::peft
