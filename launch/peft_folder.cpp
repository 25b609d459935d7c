// SPDX-License-Identifier: Apache-2.0
#include "launch/peft_folder.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "common/durable_file.h"
#include "common/error.h"
#include "launch/new_folder.h"
#include "launch/peft_config.h"
#include "launch/transformers_names.h"
#include "model/weight_loader.h"
#include "peft/lora.h"

namespace fs = std::filesystem;

namespace espalier::launch {
namespace {

/// A module of the `transformers` model that factors can be put on: one stored tensor of one role, or of several.
struct Module {
  struct Part {
    std::string linear;  ///< canonical: "decoder.3.attention.query"
    std::int64_t part = 0;
  };
  std::vector<Part> parts;
  std::int64_t num_parts = 1;
  bool is_transposed = false;
};

/// Every linear of the blocks, by module name.
std::map<std::string, Module> modules_of(const model::Backbone& backbone) {
  std::map<std::string, Module> modules;
  for (const model::LayerPlan& layer : backbone.chain) {
    if (!layer.block) {
      continue;
    }
    model::TransformerBlock(*layer.block, {}).visit_linears([&](const std::string& role, const model::Linear&) {
      const auto stored = backbone.family->stored_weight(layer, role + ".weight");
      const std::string name =
          without_end(parameter_name(backbone, checkpoint_name(backbone, layer, role + ".weight")), ".weight");
      Module& module = modules[name];
      module.is_transposed = stored.is_transposed;
      module.num_parts = stored.num_parts;
      module.parts.push_back({layer.name + "." + role, stored.part});
    });
  }
  return modules;
}

bool ends_in_module(const std::string& name, const std::string& end) {
  return name == end || name.ends_with("." + end);
}

/// The names by which PEFT finds exactly `wanted` among `all`: common ends where they do, whole names elsewhere.
std::vector<std::string> shortest_names(const std::vector<std::string>& wanted, const std::vector<std::string>& all) {
  std::set<std::string> rest(wanted.begin(), wanted.end());
  std::vector<std::string> names;
  while (!rest.empty()) {
    const std::string& name = *rest.begin();
    std::string chosen = name;
    // From the shortest end to the longest: the first that matches nothing else.
    for (auto dot = name.rfind('.'); dot != std::string::npos && dot > 0; dot = name.rfind('.', dot - 1)) {
      const std::string end = name.substr(dot + 1);
      const bool is_exact = std::all_of(all.begin(), all.end(), [&](const std::string& other) {
        return !ends_in_module(other, end) || std::find(wanted.begin(), wanted.end(), other) != wanted.end();
      });
      if (is_exact) {
        chosen = end;
        break;
      }
    }
    names.push_back(chosen);
    std::erase_if(rest, [&](const std::string& other) { return ends_in_module(other, chosen); });
  }
  return names;
}

/// What PEFT saves of the task head: whole modules outside the base model, single linears inside.
std::vector<std::string> saved_modules(const std::vector<std::string>& head_names, const std::string& base_prefix) {
  std::vector<std::string> saved;
  for (const std::string& name : head_names) {
    const std::string module =
        name.starts_with(base_prefix) ? name.substr(0, name.rfind('.')) : name.substr(0, name.find('.'));
    if (std::find(saved.begin(), saved.end(), module) == saved.end()) {
      saved.push_back(module);
    }
  }
  return saved;
}

std::string first_component(const std::string& name) {
  return name.substr(0, name.find('.') + 1);
}

std::string module_of(const std::string& parameter) {
  return parameter.substr(0, parameter.rfind('.'));
}

/// The factors of a module: those of its parts one above the other, each part reading its own.
std::pair<at::Tensor, at::Tensor> stack_factors(const Module& module,
                                                const std::map<std::string, at::Tensor>& tensors) {
  std::vector<at::Tensor> a;
  for (const auto& part : module.parts) {
    a.push_back(tensors.at(part.linear + ".lora_a"));
  }
  const at::Tensor first_b = tensors.at(module.parts.front().linear + ".lora_b");  // [out, R]
  const std::int64_t rows = first_b.size(0), rank = first_b.size(1);
  const auto num_factors = static_cast<std::int64_t>(module.parts.size());
  at::Tensor b = at::zeros({rows * module.num_parts, rank * num_factors}, first_b.options());
  for (std::int64_t i = 0; i < num_factors; ++i) {
    const auto& part = module.parts[static_cast<std::size_t>(i)];
    b.narrow(0, part.part * rows, rows).narrow(1, i * rank, rank).copy_(tensors.at(part.linear + ".lora_b"));
  }
  return {at::cat(a, 0), b};
}

/// Collects what the two files say, step by step.
class Writer {
 public:
  Writer(const peft::LoraConfig& config, const model::Backbone& backbone, const model::WeightSource& weights,
         const std::map<std::string, at::Tensor>& tensors)
      : config_(config), backbone_(backbone), weights_(weights), tensors_(tensors) {
    add_factors();
    add_head();
    add_biases();
  }

  /// By PEFT's names.
  [[nodiscard]] std::vector<std::pair<std::string, at::Tensor>> tensors() const {
    return {saved_.begin(), saved_.end()};
  }

  [[nodiscard]] nlohmann::ordered_json description() const {
    const auto saved_head = saved_modules(head_names_, base_prefix_);
    const auto [ranks, alphas] = patterns();
    return {{"peft_type", "LORA"},
            {"task_type", task_type()},
            {"base_model_name_or_path", backbone_.folder.string()},
            {"inference_mode", true},
            {"r", config_.rank},
            {"lora_alpha", config_.alpha},
            {"use_rslora", config_.rank_stabilized},
            {"rank_pattern", ranks},
            {"alpha_pattern", alphas},
            {"lora_dropout", config_.dropout},
            {"target_modules", shortest_names(adapted_, all_modules_)},
            {"fan_in_fan_out", is_transposed_},
            {"bias", config_.biases == "targets" ? "lora_only" : config_.biases},
            {"modules_to_save", saved_head.empty() ? nlohmann::json() : nlohmann::json(saved_head)},
            {"init_lora_weights", true}};
  }

 private:
  [[nodiscard]] std::set<std::string> target_linears() const {
    std::set<std::string> targets;
    for (const model::LayerPlan& layer : backbone_.chain) {
      if (layer.block) {
        for (const auto& target : peft::plan_lora(config_, layer)) {
          targets.insert(layer.name + "." + target.role);
        }
      }
    }
    return targets;
  }

  void add_factors() {
    const auto targets = target_linears();
    std::map<std::string, Module> modules = modules_of(backbone_);
    base_prefix_ = first_component(modules.begin()->first);
    for (auto& [name, module] : modules) {
      std::erase_if(module.parts, [&](const Module::Part& part) { return !targets.contains(part.linear); });
      if (module.parts.empty()) {
        continue;
      }
      const auto [a, b] = stack_factors(module, tensors_);
      saved_.emplace(kPeftPrefix + name + ".lora_A.weight", a);
      saved_.emplace(kPeftPrefix + name + ".lora_B.weight", b);
      names_by_parts_[module.parts.size()].push_back(name);
      adapted_.push_back(name);
      is_transposed_ = is_transposed_ || module.is_transposed;
    }
  }

  /// The task head, and on the way the names of all modules.
  void add_head() {
    model::visit_planned_weights(backbone_, [&](const model::LayerPlan& layer, const std::string& role,
                                                const std::vector<std::int64_t>& /*shape*/) {
      const std::string name = parameter_name(backbone_, checkpoint_name(backbone_, layer, role));
      all_modules_.push_back(module_of(name));
      const auto found = tensors_.find(layer.name + "." + role);
      if (found != tensors_.end() && model::is_task_weight(layer, role)) {
        head_names_.push_back(name);
        saved_.emplace(kPeftPrefix + name, found->second);
      }
    });
  }

  /// What trained besides the head. One that several roles share comes whole.
  void add_biases() {
    std::map<std::string, at::Tensor> biases;
    std::map<std::string, std::string> stored_names;  // by PEFT's
    model::visit_planned_weights(backbone_, [&](const model::LayerPlan& layer, const std::string& role,
                                                const std::vector<std::int64_t>& /*shape*/) {
      const auto found = tensors_.find(layer.name + "." + role);
      if (found == tensors_.end() || model::is_task_weight(layer, role)) {
        return;
      }
      biases.insert(*found);
      const std::string module = module_of(parameter_name(backbone_, checkpoint_name(backbone_, layer, role)));
      const bool has_factors = std::find(adapted_.begin(), adapted_.end(), module) != adapted_.end();
      stored_names.emplace(kPeftPrefix + module + (has_factors ? ".base_layer.bias" : ".bias"),
                           model::present_names(backbone_.family->stored_weight(layer, role), weights_).front());
    });
    const auto stored = to_stored(backbone_, weights_, biases);
    for (const auto& [name, stored_name] : stored_names) {
      saved_.emplace(name, stored.at(stored_name));
    }
  }

  /// rank_pattern and alpha_pattern: of modules that hold the factors of several roles.
  [[nodiscard]] std::pair<nlohmann::ordered_json, nlohmann::ordered_json> patterns() const {
    const double scale = peft::lora_scale(config_);
    nlohmann::ordered_json ranks = nlohmann::ordered_json::object(), alphas = ranks;
    for (const auto& [num_parts, names] : names_by_parts_) {
      if (num_parts == 1) {
        continue;
      }
      const auto rank = config_.rank * static_cast<std::int64_t>(num_parts);
      const auto size = static_cast<double>(rank);
      for (const std::string& name : shortest_names(names, all_modules_)) {
        ranks[name] = rank;
        alphas[name] = scale * (config_.rank_stabilized ? std::sqrt(size) : size);
      }
    }
    return {ranks, alphas};
  }

  /// Null where PEFT has no class for the task.
  [[nodiscard]] nlohmann::json task_type() const {
    if (backbone_.head().is_language_model) {
      return backbone_.is_encoder_decoder() ? "SEQ_2_SEQ_LM" : "CAUSAL_LM";
    }
    const bool is_text = !backbone_.chain.front().patch_embedding;
    return is_text && !backbone_.is_encoder_decoder() ? nlohmann::json("SEQ_CLS") : nlohmann::json();
  }

  const peft::LoraConfig& config_;
  const model::Backbone& backbone_;
  const model::WeightSource& weights_;
  const std::map<std::string, at::Tensor>& tensors_;  // by canonical name
  std::map<std::string, at::Tensor> saved_;           // by PEFT's
  std::vector<std::string> adapted_;                  // modules with factors
  std::map<std::size_t, std::vector<std::string>> names_by_parts_;
  std::vector<std::string> all_modules_, head_names_;
  std::string base_prefix_;
  bool is_transposed_ = false;
};

}  // namespace

std::string without_end(const std::string& name, std::string_view end) {
  return name.substr(0, name.size() - end.size());
}

bool is_peft_folder(const fs::path& folder) {
  return fs::exists(folder / kPeftConfigName) && !fs::exists(folder / checkpoint::kAdapterDescriptionName);
}

void write_peft_folder(const fs::path& folder, const peft::MethodConfig& config, const model::Backbone& backbone,
                       const std::string& pooling, const model::WeightSource& weights,
                       const std::map<std::string, at::Tensor>& tensors) {
  if (config.method != "lora") {
    throw ConfigError(
        fmt::format("--format=peft: expected a run with peft.method=lora, found {}; formats for it are espalier, and "
                    "where its training can be merged into the weights, merged",
                    config.method));
  }
  static_cast<void>(transformers_class(backbone, pooling));  // refuses what transformers does not build
  const Writer writer(config.lora, backbone, weights, tensors);
  write_new_folder(folder, [&](const fs::path& temporary) {
    model::write_safetensors(temporary / kPeftTensorsName, writer.tensors(), {{"format", "pt"}});
    write_file_durably(temporary / kPeftConfigName, writer.description().dump(2) + "\n");
  });
}

}  // namespace espalier::launch
