// SPDX-License-Identifier: Apache-2.0
#include "tests/support/tiny_model.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "common/durable_file.h"
#include "model/backbone.h"
#include "model/initial.h"
#include "model/slice.h"
#include "model/weights.h"

namespace espalier::test {

namespace {

/// Large enough that attention is not uniform and activations bend.
constexpr double kDeviation = 0.2;

nlohmann::json config_of(const TinyModel& model) {
  nlohmann::json config = {
      {"model_type", model.family},
      {"vocab_size", model.vocab},
      {"hidden_size", model.width},
      {"num_hidden_layers", model.num_blocks},
      {"num_attention_heads", model.heads},
      {"intermediate_size", model.ff},
      {"hidden_act", model.activation},
      {"hidden_dropout_prob", model.dropout},
      {"attention_probs_dropout_prob", model.dropout},
      {"max_position_embeddings", model.max_positions},
      {"type_vocab_size", 2},
      {"layer_norm_eps", 1e-12},
      {"initializer_range", 0.02},
      {"pad_token_id", model.family == "bert" ? 0 : 1},
      {"id2label", nlohmann::json::object()},
  };
  for (std::int64_t label = 0; label < model.num_labels; ++label) {
    config["id2label"][std::to_string(label)] = "LABEL_" + std::to_string(label);
  }
  return config;
}

}  // namespace

std::filesystem::path write_tiny_model(const TinyModel& model, const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  write_file_durably(folder / "config.json", config_of(model).dump(2));
  const auto backbone = model::read_backbone(folder, {});
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  model::visit_planned_weights(
      backbone, [&](const model::LayerPlan& layer, const std::string& role, const std::vector<std::int64_t>& shape) {
        const bool is_pooler = model.family == "bert" && role.starts_with("dense.");
        if (layer.kind == model::LayerKind::kHead && !model.has_head && !is_pooler) return;
        const auto name = backbone.family->stored_weight(layer, role).names.front();
        auto value = model::normal_by_name(shape, kDeviation, /*seed=*/1, name);
        if (role.ends_with("norm.weight")) value.add_(1);
        tensors.emplace_back(name, value);
      });
  model::write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
  return folder;
}

}  // namespace espalier::test
