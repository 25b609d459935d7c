// SPDX-License-Identifier: Apache-2.0
#include "launch/merged_folder.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "checkpoint/tensor_file.h"
#include "common/durable_file.h"
#include "launch/new_folder.h"
#include "launch/transformers_names.h"
#include "model/weight_loader.h"
#include "train/device.h"

namespace fs = std::filesystem;

namespace espalier::launch {
namespace {

using Json = nlohmann::ordered_json;

/// What else belongs to a model folder.
constexpr const char* kCopiedFiles[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.txt",
                                        "vocab.json",
                                        "merges.txt",
                                        "spiece.model",
                                        "tokenizer.model",
                                        "sentencepiece.bpe.model",
                                        "chat_template.jinja",
                                        "chat_template.json",
                                        "generation_config.json",
                                        "preprocessor_config.json",
                                        "processor_config.json"};

/// What the folder leaves out before the names of the base model ("" for the folder of a class with a head).
std::string missing_prefix(const model::Backbone& backbone, const model::WeightSource& weights) {
  std::string prefix;
  model::visit_planned_weights(backbone, [&](const model::LayerPlan& layer, const std::string& role,
                                             const std::vector<std::int64_t>& /*shape*/) {
    const auto present = model::present_names(backbone.family->stored_weight(layer, role), weights);
    const std::string name = checkpoint_name(backbone, layer, role);
    if (layer.block && !present.empty() && name.size() > present.front().size() && name.ends_with(present.front())) {
      prefix = name.substr(0, name.size() - present.front().size());
    }
  });
  return prefix;
}

bool is_outside_base(const std::string& name) {
  for (const char* beginning : {"lm_head.", "cls.", "final_logits_bias"}) {
    if (name.starts_with(beginning)) {
      return true;
    }
  }
  return false;
}

/// Every tensor of the new folder, by name: views of the old one where nothing changed.
std::map<std::string, at::Tensor> all_tensors(const model::Backbone& backbone, const model::WeightSource& weights,
                                              const std::map<std::string, at::Tensor>& merged,
                                              const std::string& type) {
  const auto changed = to_stored(backbone, weights, merged);
  const std::string prefix = missing_prefix(backbone, weights);
  std::map<std::string, at::Tensor> tensors;
  for (const std::string& name : weights.names()) {
    const auto found = changed.find(name);
    const at::Tensor stored = weights.get(name);
    const at::Tensor value = found == changed.end() ? stored
                             : type == "stored"     ? found->second.to(stored.scalar_type())
                                                    : found->second;  // converted once, below
    tensors.emplace(is_outside_base(name) ? name : prefix + name, value);
  }
  model::visit_planned_weights(backbone, [&](const model::LayerPlan& layer, const std::string& role,
                                             const std::vector<std::int64_t>& /*shape*/) {
    const auto value = merged.find(layer.name + "." + role);
    if (value == merged.end() || !model::is_task_weight(layer, role)) {
      return;
    }
    for (const std::string& name : backbone.family->stored_weight(layer, role).names) {
      tensors.erase(name);  // of another number of labels, or without the prefix
    }
    tensors.insert_or_assign(checkpoint_name(backbone, layer, role), value->second);
  });
  if (type != "stored") {
    for (auto& [name, tensor] : tensors) {
      if (tensor.is_floating_point()) {
        tensor = tensor.to(train::compute_type_from(type));
      }
    }
  }
  return tensors;
}

void write_shards(const fs::path& folder, const std::map<std::string, at::Tensor>& tensors, std::int64_t shard_bytes) {
  std::vector<std::vector<std::pair<std::string, at::Tensor>>> shards(1);
  std::int64_t bytes = 0, total = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto size = static_cast<std::int64_t>(tensor.nbytes());
    if (!shards.back().empty() && bytes + size > shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().emplace_back(name, tensor);
    bytes += size;
    total += size;
  }
  if (shards.size() == 1) {
    model::write_safetensors(folder / "model.safetensors", shards.front(), {{"format", "pt"}});
    return;
  }
  Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", Json::object()}};
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    model::write_safetensors(folder / file, shards[i], {{"format", "pt"}});
    for (const auto& [name, tensor] : shards[i]) {
      index["weight_map"][name] = file;
    }
  }
  write_file_durably(folder / "model.safetensors.index.json", index.dump(2) + "\n");
}

std::string merged_config(const model::Backbone& backbone, const std::string& class_name,
                          const data::DatasetInfo& dataset, const std::string& type) {
  Json config = Json::parse(read_file(backbone.folder / "config.json"));
  config["architectures"] = {class_name};
  const model::HeadSpec& head = backbone.head();
  if (!head.is_language_model) {
    Json names = Json::object(), numbers = Json::object();
    for (std::int64_t label = 0; label < head.num_labels; ++label) {
      const auto index = static_cast<std::size_t>(label);
      const std::string name =
          index < dataset.label_names.size() ? dataset.label_names[index] : fmt::format("LABEL_{}", label);
      names[std::to_string(label)] = name;
      numbers[name] = label;
    }
    config["id2label"] = names;
    config["label2id"] = numbers;
    config["num_labels"] = head.num_labels;
    config["problem_type"] = dataset.task == data::TaskKind::kRegression   ? "regression"
                             : dataset.task == data::TaskKind::kMultiLabel ? "multi_label_classification"
                                                                           : "single_label_classification";
  }
  if (!head.is_language_model && backbone.vocab_size > 0 && config.value("pad_token_id", Json()).is_null()) {
    config["pad_token_id"] = backbone.pad_token_id;  // the classes for causal models find the last token by it
  }
  if (type != "stored") {
    // "torch_dtype" before transformers 5.
    config.erase("torch_dtype");
    config["dtype"] = checkpoint::dtype_text(train::compute_type_from(type), "--type");
  }
  return config.dump(2) + "\n";
}

}  // namespace

void write_merged_folder(const fs::path& folder, const model::Backbone& backbone, const std::string& pooling,
                         const model::WeightSource& weights, const std::map<std::string, at::Tensor>& merged,
                         const data::DatasetInfo& dataset, const MergedOptions& options) {
  const std::string class_name = transformers_class(backbone, pooling);
  write_new_folder(folder, [&](const fs::path& temporary) {
    write_shards(temporary, all_tensors(backbone, weights, merged, options.type), options.shard_bytes);
    write_file_durably(temporary / "config.json", merged_config(backbone, class_name, dataset, options.type));
    for (const char* name : kCopiedFiles) {
      if (fs::exists(backbone.folder / name)) {
        fs::copy_file(backbone.folder / name, temporary / name);
      }
    }
  });
}

}  // namespace espalier::launch
