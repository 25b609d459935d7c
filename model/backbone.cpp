// SPDX-License-Identifier: Apache-2.0
#include "model/backbone.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <utility>

#include "common/error.h"
#include "model/config_file.h"
#include "model/families/families.h"

namespace espalier::model {

namespace {

using PlanFamily = Backbone (*)(const ConfigFile& config, const HeadRequest& head);

/// Every family, by the `model_type` of its config.json.
constexpr std::pair<const char*, PlanFamily> kFamilies[] = {
    {"bert", plan_bert},     {"roberta", plan_roberta}, {"xlm-roberta", plan_roberta}, {"t5", plan_t5},
    {"bart", plan_bart},     {"opt", plan_opt},         {"gpt2", plan_gpt2},           {"llama", plan_llama},
    {"mistral", plan_llama}, {"vit", plan_vit},
};

/// What generation needs to know: config.json says it, generation_config.json may say otherwise.
void read_generation(const ConfigFile& config, Backbone& backbone) {
  if (config.has("eos_token_id")) backbone.eos_token_ids = config.integers("eos_token_id", 0);
  backbone.forced_first_token_id = config.integer_or("forced_bos_token_id", 0, backbone.forced_first_token_id);
  backbone.forced_last_token_id = config.integer_or("forced_eos_token_id", 0, backbone.forced_last_token_id);
  if (backbone.is_encoder_decoder()) {
    backbone.decoder_start_token_id = config.integer_or("decoder_start_token_id", 0, backbone.decoder_start_token_id);
  }
}

}  // namespace

bool is_task_weight(const LayerPlan& layer, std::string_view role) {
  return (layer.head && !layer.head->is_language_model) || role.starts_with("visual.");
}

int Backbone::num_blocks() const {
  return static_cast<int>(std::count_if(chain.begin(), chain.end(),
                                        [](const LayerPlan& layer) { return layer.kind == LayerKind::kBlock; }));
}

Backbone read_backbone(const std::filesystem::path& folder, const HeadRequest& head) {
  if (head.num_labels < 0) {
    throw ConfigError(
        fmt::format("number of labels: expected at least 1, or 0 for what the folder says; found {}", head.num_labels));
  }
  if (head.pooling != "auto" && head.pooling != "mean") {
    throw ConfigError(fmt::format("pooling: expected auto or mean; found \"{}\"", head.pooling));
  }
  const ConfigFile config(folder / "config.json");
  const auto model_type = config.text_or("model_type", "");
  std::string known;
  for (const auto& [name, plan] : kFamilies) {
    if (model_type == name) {
      auto backbone = plan(config, head);
      backbone.folder = folder;
      read_generation(config, backbone);
      if (std::filesystem::exists(folder / "generation_config.json")) {
        read_generation(ConfigFile(folder / "generation_config.json"), backbone);
      }
      return backbone;
    }
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  config.refuse("model_type", "one of " + known);
}

}  // namespace espalier::model
