// SPDX-License-Identifier: Apache-2.0
#include "launch/transformers_names.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/error.h"
#include "model/weight_loader.h"

namespace espalier::launch {
namespace {

void replace_first(std::string& text, const std::string& from, const std::string& to) {
  if (const auto place = text.find(from); place != std::string::npos) {
    text.replace(place, from.size(), to);
  }
}

/// Stored names of a weight that the folder has: all copies of a tied one, but not the table of a head that differs.
std::vector<std::string> stored_names(const model::StoredWeight& stored, const model::WeightSource& source) {
  std::vector<std::string> names = stored.names;
  const auto read = model::present_names(stored, source);
  const bool is_untied =
      stored.is_tied_head && !read.empty() && std::find(names.begin(), names.end(), read.front()) != names.end();
  if (!is_untied) {
    names.insert(names.end(), stored.tied_names.begin(), stored.tied_names.end());
  }
  std::erase_if(names, [&](const std::string& name) { return !source.contains(name); });
  return names;
}

}  // namespace

std::string checkpoint_name(const model::Backbone& backbone, const model::LayerPlan& layer, const std::string& role) {
  const auto names = backbone.family->stored_weight(layer, role).names;
  if (backbone.head().is_language_model) {
    return names.front();
  }
  // Behind a pooled head the base model always has a prefix, T5's too, which has none in its other forms.
  return *std::max_element(names.begin(), names.end(),
                           [](const auto& one, const auto& other) { return one.size() < other.size(); });
}

std::string parameter_name(const model::Backbone& backbone, const std::string& checkpoint_name) {
  std::string name = checkpoint_name;
  if (backbone.family->model_type() == "vit") {
    static const std::vector<std::pair<std::string, std::string>> renamed = {
        {"encoder.layer.", "layers."},
        {"attention.attention.query", "attention.q_proj"},
        {"attention.attention.key", "attention.k_proj"},
        {"attention.attention.value", "attention.v_proj"},
        {"attention.output.dense", "attention.o_proj"},
        {"intermediate.dense", "mlp.fc1"},
        {".output.dense", ".mlp.fc2"}};
    for (const auto& [from, to] : renamed) {
      replace_first(name, from, to);
    }
  }
  return name;
}

std::string transformers_class(const model::Backbone& backbone, const std::string& pooling) {
  static const std::map<std::string, std::pair<std::string, std::string>> classes = {
      {"bert", {"BertForSequenceClassification", ""}},
      {"roberta", {"RobertaForSequenceClassification", ""}},
      {"xlm-roberta", {"XLMRobertaForSequenceClassification", ""}},
      {"t5", {"T5ForSequenceClassification", "T5ForConditionalGeneration"}},
      {"bart", {"BartForSequenceClassification", "BartForConditionalGeneration"}},
      {"opt", {"OPTForSequenceClassification", "OPTForCausalLM"}},
      {"gpt2", {"GPT2ForSequenceClassification", "GPT2LMHeadModel"}},
      {"llama", {"LlamaForSequenceClassification", "LlamaForCausalLM"}},
      {"mistral", {"MistralForSequenceClassification", "MistralForCausalLM"}},
      {"vit", {"ViTForImageClassification", ""}}};
  if (backbone.visual() != nullptr) {
    throw ConfigError(
        fmt::format("{}: expected a model that transformers has a class for, found CLIP-T5; export it in "
                    "the format espalier",
                    backbone.folder.string()));
  }
  if (pooling != "auto") {
    throw ConfigError(
        fmt::format("model.pooling: expected auto, the head that transformers builds, found {}; export "
                    "the run in the format espalier",
                    pooling));
  }
  const auto found = classes.find(backbone.family->model_type());
  ESPALIER_CHECK(found != classes.end(), "no class known for {}", backbone.family->model_type());
  return backbone.head().is_language_model ? found->second.second : found->second.first;
}

std::map<std::string, at::Tensor> to_stored(const model::Backbone& backbone, const model::WeightSource& source,
                                            const std::map<std::string, at::Tensor>& weights) {
  std::map<std::string, at::Tensor> tensors;
  model::visit_planned_weights(backbone, [&](const model::LayerPlan& layer, const std::string& role,
                                             const std::vector<std::int64_t>& /*shape*/) {
    const auto weight = weights.find(layer.name + "." + role);
    if (weight == weights.end()) {
      return;
    }
    const model::StoredWeight stored = backbone.family->stored_weight(layer, role);
    const auto names = stored_names(stored, source);
    if (stored.num_parts == 1) {
      const at::Tensor value = (stored.is_transposed ? weight->second.t() : weight->second).contiguous();
      for (const std::string& name : names) {
        tensors.insert_or_assign(name, value);
      }
      if (names.empty()) {
        tensors.emplace(checkpoint_name(backbone, layer, role), value);
      }
      return;
    }
    ESPALIER_CHECK(names.size() == 1, "{}.{} is a part of {} stored tensors", layer.name, role, names.size());
    auto& whole = tensors[names.front()];
    if (!whole.defined()) {
      whole = at::empty(source.shape(names.front()), weight->second.options()).copy_(source.get(names.front()));
    }
    model::stored_part(stored, whole).copy_(weight->second);
  });
  return tensors;
}

}  // namespace espalier::launch
