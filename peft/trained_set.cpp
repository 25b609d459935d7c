// SPDX-License-Identifier: Apache-2.0
#include "peft/trained_set.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

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
