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

}  // namespace

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
      return backbone;
    }
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  config.refuse("model_type", "one of " + known);
}

}  // namespace espalier::model
