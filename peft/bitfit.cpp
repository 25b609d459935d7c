// SPDX-License-Identifier: Apache-2.0
#include "peft/bitfit.h"

#include <c10/util/accumulate.h>
#include <spdlog/fmt/fmt.h>

#include <optional>

#include "common/error.h"
#include "peft/trained_set.h"

namespace espalier::peft {
namespace {

constexpr const char* kKey = "peft.method=bitfit";

}  // namespace

bool is_backbone_bias(const model::Backbone& backbone, const model::LayerPlan& layer, const std::string& role,
                      const std::vector<std::int64_t>& shape) {
  const model::StoredWeight stored = backbone.family->stored_weight(layer, role);
  return shape.size() == 1 && role.ends_with(".bias") && !stored.is_buffer && !model::is_task_weight(layer, role);
}

int first_trained_by_biases(const std::string& key, const model::Backbone& backbone) {
  std::optional<std::uint64_t> first;
  model::visit_planned_weights(
      backbone, [&](const model::LayerPlan& layer, const std::string& role, const std::vector<std::int64_t>& shape) {
        if (!first && is_backbone_bias(backbone, layer, role, shape)) {
          first = layer.index;
        }
      });
  if (!first) {
    throw ConfigError(
        fmt::format("{}: expected a backbone with biases in its linears or norms, found none in {} (models like T5 and "
                    "Llama have none); choose another value",
                    key, backbone.folder.string()));
  }
  return backbone.visual() != nullptr ? 0 : static_cast<int>(*first);
}

std::int64_t count_bitfit(const model::Backbone& backbone) {
  static_cast<void>(first_trained_by_biases(kKey, backbone));
  std::int64_t count = 0;
  model::visit_planned_weights(
      backbone, [&](const model::LayerPlan& layer, const std::string& role, const std::vector<std::int64_t>& shape) {
        count += is_backbone_bias(backbone, layer, role, shape) ? c10::multiply_integers(shape) : 0;
      });
  return count;
}

BitFitMethod::BitFitMethod(model::StageSlice& slice, const model::WeightSource& weights)
    : ChainMethod(slice, {.first_trained_layer = first_trained_by_biases(kKey, slice.backbone())}) {
  for (const auto& layer : slice.layers()) {
    const auto is_bias = [&](const std::string& role, const std::vector<std::int64_t>& shape) {
      return is_backbone_bias(slice.backbone(), layer->plan(), role, shape);
    };
    train_chosen(slice, *layer, weights, is_bias, trained());
    train_task_weights(slice, *layer, weights, trained());
  }
}

}  // namespace espalier::peft
