// SPDX-License-Identifier: Apache-2.0
// Reads what PEFT wrote. The tensors say which linears have factors and of which rank, so patterns of target modules,
// excluded ones and layer subsets need no reading; the config says how the factors are scaled and what else they mean.
#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "common/durable_file.h"
#include "common/error.h"
#include "launch/peft_config.h"
#include "launch/peft_folder.h"
#include "launch/run_config.h"
#include "launch/transformers_names.h"
#include "model/weight_loader.h"
#include "peft/linear_targets.h"

namespace fs = std::filesystem;

namespace espalier::launch {
namespace {

/// Sizes, -1 as "any".
std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::vector<std::string> sizes;
  sizes.reserve(shape.size());
  for (const std::int64_t size : shape) {
    sizes.push_back(size < 0 ? "any" : fmt::to_string(size));
  }
  return fmt::format("{}", fmt::join(sizes, ", "));
}

/// Every linear of the blocks, by canonical name.
std::map<std::string, peft::LinearTarget> linears_of(const model::Backbone& backbone) {
  std::map<std::string, peft::LinearTarget> linears;
  for (const model::LayerPlan& layer : backbone.chain) {
    if (layer.block) {
      model::TransformerBlock block(*layer.block, {});
      block.visit_linears([&](const std::string& role, const model::Linear& linear) {
        linears[layer.name + "." + role] = {role, /*linear=*/0, linear.in_features, linear.out_features};
      });
    }
  }
  return linears;
}

/// Where a tensor of the `transformers` model belongs: the role of one weight, or several that share it.
struct Place {
  const model::LayerPlan* layer = nullptr;
  std::string role;
  model::StoredWeight stored;
  /// Of a weight or bias of one.
  [[nodiscard]] std::string linear() const { return layer->name + "." + role.substr(0, role.rfind('.')); }
  [[nodiscard]] std::string name() const { return layer->name + "." + role; }
};

/// By every name that a folder of this family, or the program, may have for it.
std::map<std::string, std::vector<Place>> places_of(const model::Backbone& backbone) {
  std::map<std::string, std::vector<Place>> places;
  model::visit_planned_weights(backbone, [&](const model::LayerPlan& layer, const std::string& role,
                                             const std::vector<std::int64_t>& /*shape*/) {
    const auto stored = backbone.family->stored_weight(layer, role);
    auto as_rows = stored;  // factors and biases are never transposed
    as_rows.is_transposed = false;
    std::set<std::string> names(stored.names.begin(), stored.names.end());
    for (const std::string& name : stored.names) {
      names.insert(parameter_name(backbone, name));
    }
    for (const std::string& name : names) {
      places[name].push_back({&backbone.layer(static_cast<int>(layer.index)), role, as_rows});
    }
  });
  return places;
}

struct Factors {
  at::Tensor a, b;  ///< [R, in], [out, R]
  double scale = 1;
  std::string key;  ///< of A in the file
};

class Reader {
 public:
  Reader(const fs::path& folder, const fs::path& model_folder)
      : folder_(folder), config_(folder), source_(open_peft_tensors(folder)) {
    backbone_ = model::read_backbone(model_folder, read_head());
    weights_ = model::open_model_folder(model_folder);
    places_ = places_of(backbone_);
    linears_ = linears_of(backbone_);
  }

  checkpoint::Adapter read() {
    for (const std::string& key : source_->names()) {
      read_tensor(key);
    }
    const peft::LoraConfig lora = join_factors();
    complete(lora);
    RunConfig run;
    run.peft.method = "lora";
    run.peft.lora = lora;
    OptionTable table;
    describe(table, run);
    checkpoint::Adapter adapter;
    adapter.description = {{"method", "lora"},
                           {"options", adapter_options(table)},
                           {"head", head_.kind},
                           {"num_labels", head_.num_labels}};
    adapter.tensors = std::move(tensors_);
    return adapter;
  }

 private:
  [[noreturn]] void refuse(const std::string& key, const std::string& why) const {
    throw ConfigError(fmt::format("{}: tensor {}: {}", (folder_ / kPeftTensorsName).string(), key, why));
  }

  /// A classifier among the saved modules says that the head is a pooled one, and for how many labels.
  model::HeadRequest read_head() {
    for (const std::string& key : source_->names()) {
      for (const char* end : {".classifier.weight", ".classifier.out_proj.weight", ".score.weight",
                              ".classification_head.out_proj.weight"}) {
        if (key.ends_with(end)) {
          require_shape(key, {-1, -1});
          head_.num_labels = source_->shape(key).front();
          head_.kind = "pooled";
        }
      }
    }
    if (const std::string kind = config_.head_kind(); !kind.empty()) {
      head_.kind = kind;
    }
    return head_;
  }

  /// Throws: ConfigError naming the tensor unless it has that shape; -1: any size but 0.
  void require_shape(const std::string& key, const std::vector<std::int64_t>& expected) const {
    const auto found = source_->shape(key);
    const auto fits = [](std::int64_t size, std::int64_t wanted) { return wanted < 0 ? size > 0 : size == wanted; };
    if (!std::equal(found.begin(), found.end(), expected.begin(), expected.end(), fits)) {
      refuse(key, fmt::format("expected shape [{}], found [{}]; it is of another model, or not as PEFT saves it",
                              shape_text(expected), fmt::join(found, ", ")));
    }
  }

  void read_tensor(const std::string& key) {
    if (!key.starts_with(kPeftPrefix)) {
      refuse(key, fmt::format("expected a name that begins with {}", kPeftPrefix));
    }
    std::string name = key.substr(std::string_view(kPeftPrefix).size());
    for (const char* wrapped : {".original_module.", ".modules_to_save."}) {
      if (name.find(wrapped) != std::string::npos) {
        return;  // bias=all lists what stands inside PEFT's wrapper, too; the saved module itself comes by its own name
      }
    }
    constexpr std::string_view kInner = ".base_layer.";
    if (const auto place = name.find(kInner); place != std::string::npos) {
      name.replace(place, kInner.size(), ".");
    }
    for (const bool is_a : {true, false}) {
      const std::string_view end = is_a ? ".lora_A.weight" : ".lora_B.weight";
      if (name.ends_with(end)) {
        return read_factor(key, without_end(name, end), is_a);
      }
    }
    if (name.find(".lora_") != std::string::npos) {
      refuse(key, "expected lora_A.weight and lora_B.weight of linears alone; other tensors of LoRA are not supported");
    }
    const auto found = places_.find(name);
    if (found == places_.end()) {
      refuse(key, fmt::format("no tensor {} is in a model of {}", name, backbone_.folder.string()));
    }
    for (const Place& place : found->second) {
      const bool is_task = model::is_task_weight(*place.layer, place.role);
      if (!is_task && !place.role.ends_with(".bias")) {
        refuse(key, "expected factors, biases and the task head; other saved modules are not supported");
      }
      tensors_.insert_or_assign(place.name(),
                                model::stored_part(place.stored, source_->get(key).to(at::kFloat)).clone());
    }
  }

  void read_factor(const std::string& key, const std::string& module, bool is_a) {
    const auto found = places_.find(module + ".weight");
    const auto linear = found == places_.end() ? linears_.end() : linears_.find(found->second.front().linear());
    if (linear == linears_.end()) {
      refuse(key, fmt::format("no linear {} is in a block of {}; factors elsewhere are not supported", module,
                              backbone_.folder.string()));
    }
    const std::string beginning = without_end(key, is_a ? "A.weight" : "B.weight");
    const std::string partner = beginning + (is_a ? "B.weight" : "A.weight");
    if (!source_->contains(partner)) {
      refuse(key, fmt::format("expected {} beside it, found none; let PEFT save the adapter anew", partner));
    }
    if (!is_a) {
      return;  // read with its pair
    }
    const auto& places = found->second;
    require_shape(key, {-1, linear->second.in_features});
    require_shape(partner,
                  {linear->second.out_features * places.front().stored.num_parts, source_->shape(key).front()});
    const at::Tensor a = source_->get(key).to(at::kFloat), b = source_->get(partner).to(at::kFloat);
    for (const Place& place : places) {
      at::Tensor own_a = a;
      at::Tensor own_b = model::stored_part(place.stored, b);
      if (places.size() > 1) {
        // A direction that only other parts read is none of this one's.
        const at::Tensor is_read_here = own_b.ne(0).any(0), is_read = b.ne(0).any(0);
        const at::Tensor kept = is_read_here.logical_or(is_read.logical_not()).nonzero().flatten();
        own_a = own_a.index_select(0, kept);
        own_b = own_b.index_select(1, kept);
      }
      if (own_a.size(0) > 0) {
        factors_.emplace(place.linear(), Factors{own_a, own_b, config_.scale(module, a.size(0)), key});
      }
    }
  }

  /// One rank and one scale for all: smaller factors are filled up with zeros, which get no gradient, and B takes the
  /// rest of the scale.
  peft::LoraConfig join_factors() {
    if (factors_.empty()) {
      throw ConfigError(fmt::format("{}: expected factors of LoRA, found none", (folder_ / kPeftTensorsName).string()));
    }
    const auto largest = std::max_element(factors_.begin(), factors_.end(), [](const auto& one, const auto& other) {
      return one.second.a.size(0) < other.second.a.size(0);
    });
    peft::LoraConfig lora;
    lora.rank = largest->second.a.size(0);
    require_width_for(lora.rank, largest->first);
    lora.rank_stabilized = config_.is_rank_stabilized();
    const auto rank = static_cast<double>(lora.rank);
    lora.alpha = largest->second.scale * (lora.rank_stabilized ? std::sqrt(rank) : rank);
    lora.dropout = config_.dropout();
    lora.biases = config_.biases();
    for (const auto& [linear, factors] : factors_) {
      at::Tensor a = at::zeros({lora.rank, factors.a.size(1)}), b = at::zeros({factors.b.size(0), lora.rank});
      a.narrow(0, 0, factors.a.size(0)).copy_(factors.a);
      b.narrow(1, 0, factors.a.size(0)).copy_(factors.b.mul(factors.scale / largest->second.scale));
      tensors_.emplace(linear + ".lora_a", a);
      tensors_.emplace(linear + ".lora_b", b);
    }
    lora.targets = name_targets();
    return lora;
  }

  /// Throws: ConfigError naming a tensor whose linear is too narrow for the rank that all of them get.
  void require_width_for(std::int64_t rank, const std::string& largest) const {
    for (const auto& [linear, factors] : factors_) {
      if (const auto width = linears_.at(linear).smaller_width(); width < rank) {
        refuse(factors.key,
               fmt::format("all targets take the largest rank: expected at most {}, the smaller width of {}, found {} "
                           "on {}; train it in PEFT with ranks of at most {}, or without {}",
                           width, linear, rank, largest, width, linear));
      }
    }
  }

  /// Roles where every block that has the linear has factors on it, single linears elsewhere.
  std::vector<std::string> name_targets() {
    std::map<std::string, std::vector<std::string>> linears_by_role;
    for (const model::LayerPlan& layer : backbone_.chain) {
      if (layer.block) {
        model::TransformerBlock(*layer.block, {}).visit_linears([&](const std::string& role, const model::Linear&) {
          linears_by_role[role].push_back(layer.name + "." + role);
        });
      }
    }
    std::vector<std::string> targets;
    for (const auto& [role, linears] : linears_by_role) {
      std::vector<std::string> adapted;
      std::copy_if(linears.begin(), linears.end(), std::back_inserter(adapted),
                   [&](const std::string& linear) { return factors_.contains(linear); });
      if (adapted.size() == linears.size()) {
        targets.push_back(role);
      } else {
        targets.insert(targets.end(), adapted.begin(), adapted.end());
      }
    }
    return targets;
  }

  /// What trains here and PEFT did not save is as the backbone has it. What PEFT saved as the backbone has it and does
  /// not train here goes: biases of other roles in one stored tensor.
  void complete(const peft::LoraConfig& lora) {
    model::visit_planned_weights(backbone_, [&](const model::LayerPlan& layer, const std::string& role,
                                                const std::vector<std::int64_t>& shape) {
      const std::string name = layer.name + "." + role;
      const bool is_task = model::is_task_weight(layer, role);
      const bool trains = is_task || peft::is_chosen_bias({lora.biases, lora.targets}, backbone_, layer, role, shape);
      const auto saved = tensors_.find(name);
      if (trains == (saved != tensors_.end())) {
        return;
      }
      const auto stored = backbone_.family->stored_weight(layer, role);
      const auto present = model::present_names(stored, *weights_);
      if (!present.empty()) {
        const auto value = model::stored_part(stored, weights_->get(present.front())).to(at::kFloat);
        if (trains) {
          tensors_.emplace(name, value.clone());
        } else if (at::equal(value, saved->second)) {
          tensors_.erase(saved);
        }
      } else if (is_task) {
        throw ConfigError(fmt::format(
            "{}: expected {} (a role of the task head) among the saved modules or in {}, found it in neither; save it "
            "with PEFT's modules_to_save",
            (folder_ / kPeftTensorsName).string(), name, backbone_.folder.string()));
      }
    });
  }

  fs::path folder_;
  PeftConfig config_;
  std::unique_ptr<model::WeightSource> source_;
  model::HeadRequest head_;
  model::Backbone backbone_;
  std::unique_ptr<model::WeightSource> weights_;
  std::map<std::string, std::vector<Place>> places_;
  std::map<std::string, peft::LinearTarget> linears_;
  std::map<std::string, Factors> factors_;  // by canonical linear
  std::map<std::string, at::Tensor> tensors_;
};

}  // namespace

std::unique_ptr<model::WeightSource> open_peft_tensors(const fs::path& folder) {
  if (!fs::exists(folder / kPeftTensorsName)) {
    throw ConfigError(fmt::format("{}: expected {}, found none; let PEFT save the adapter as safetensors",
                                  folder.string(), kPeftTensorsName));
  }
  return model::open_safetensors(folder / kPeftTensorsName);
}

checkpoint::Adapter read_peft_folder(const fs::path& folder, const fs::path& model_folder) {
  try {
    return Reader(folder, model_folder).read();
  } catch (const nlohmann::json::exception& error) {
    throw ConfigError(fmt::format("{}: a key is of another type than PEFT gives it: {}",
                                  (folder / kPeftConfigName).string(), error.what()));
  }
}

}  // namespace espalier::launch
