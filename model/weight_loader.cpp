// SPDX-License-Identifier: Apache-2.0
#include "model/weight_loader.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "common/error.h"
#include "common/log.h"
#include "model/initial.h"
#include "model/visual_embedding.h"

namespace espalier::model {

namespace {

/// The shape a role sees of a stored tensor of shape `stored_shape`.
std::vector<std::int64_t> shape_as_used(const StoredWeight& stored, std::vector<std::int64_t> stored_shape) {
  if (stored.is_transposed) std::reverse(stored_shape.begin(), stored_shape.end());
  if (stored.num_parts > 1 && !stored_shape.empty() && stored_shape[0] % stored.num_parts == 0) {
    stored_shape[0] /= stored.num_parts;
  }
  return stored_shape;
}

}  // namespace

at::Tensor stored_part(const StoredWeight& stored, at::Tensor tensor) {
  if (stored.is_transposed) tensor = tensor.t();
  const auto rows = tensor.dim() == 0 ? 0 : tensor.size(0) / stored.num_parts;
  return stored.num_parts > 1 ? tensor.narrow(0, stored.part * rows, rows) : tensor;
}

std::vector<std::string> present_names(const StoredWeight& stored, const WeightSource& source) {
  const auto present_of = [&](const std::vector<std::string>& names) {
    std::vector<std::string> present;
    std::copy_if(names.begin(), names.end(), std::back_inserter(present),
                 [&](const std::string& name) { return source.contains(name); });
    return present;
  };
  auto present = present_of(stored.names);
  // Copies of one tied tensor are equal: the first will do.
  auto tied = present_of(stored.tied_names);
  if (!tied.empty()) tied.resize(1);
  if (present.empty()) return tied;
  // Folders converted from files that held every copy have the head's too. Training both would untie them.
  const bool is_copy =
      stored.is_tied_head && present.size() == 1 && !tied.empty() && source.is_copy(present.front(), tied.front());
  return is_copy ? tied : present;
}

void WeightLoader::load(Layer& layer) {
  const auto& plan = layer.plan();
  if (plan.head && !plan.head->is_language_model) {
    layer.visit_linears([&](const std::string& role, Linear& linear) { load_head_linear(plan, role, linear); });
    return;
  }
  const bool is_visual_stored = is_any_visual_stored(layer);
  layer.visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& shape) {
    if (!is_task_weight(plan, role) && shared_ != nullptr) {
      slot = shared_->at(plan.name + "." + role);
      return;
    }
    if (!is_task_weight(plan, role)) return load_slot(plan, role, shape, options_.compute_type, slot);
    if (is_visual_stored) return load_slot(plan, role, shape, at::kFloat, slot);
    slot = initial_visual_weight(*plan.embedding->visual, role, shape, options_.seed, plan.name + "." + role)
               .to(options_.device);
  });
}

bool WeightLoader::is_any_visual_stored(Layer& layer) const {
  const auto& plan = layer.plan();
  bool is_stored = false, is_there = false;
  layer.visit_weights(
      [&](const std::string& role, const at::Tensor& /*slot*/, const std::vector<std::int64_t>& /*shape*/) {
        if (!is_task_weight(plan, role)) return;
        is_there = true;
        is_stored = is_stored || !present_names_of(plan, role).empty();
      });
  if (is_there && !is_stored) {
    log_info("model", "{}: the visual embedding is not in {}; starts fresh", plan.name, backbone_.folder.string());
  }
  return is_stored;
}

void WeightLoader::load_slot(const LayerPlan& plan, const std::string& role, const std::vector<std::int64_t>& shape,
                             at::ScalarType type, at::Tensor& slot) {
  const auto stored = backbone_.family->stored_weight(plan, role);
  const auto present = present_names(stored, source_);
  if (present.empty() && stored.is_buffer) {
    slot = at::zeros(shape, at::TensorOptions().dtype(type).device(options_.device));
    return;
  }
  if (present.empty()) {
    auto names = stored.names;
    names.insert(names.end(), stored.tied_names.begin(), stored.tied_names.end());
    problems_.push_back(
        fmt::format("{}.{}: missing; expected a tensor named {}", plan.name, role, fmt::join(names, " or ")));
    return;
  }
  if (present.size() > 1) {
    problems_.push_back(
        fmt::format("{}.{}: expected one of these tensors; found {}", plan.name, role, fmt::join(present, " and ")));
    return;
  }
  const auto& name = present.front();
  const auto stored_shape = source_.shape(name);
  if (shape_as_used(stored, stored_shape) != shape) {
    problems_.push_back(fmt::format("{}: expected shape [{}]{}; found [{}]", name, fmt::join(shape, ", "),
                                    stored.is_transposed || stored.num_parts > 1 ? " of the used part" : "",
                                    fmt::join(stored_shape, ", ")));
    return;
  }
  const std::tuple key(name, stored.part, type);
  if (const auto done = converted_.find(key); done != converted_.end()) {
    slot = done->second;
    return;
  }
  const auto view = source_.get(name);
  if (!view.is_floating_point()) {
    problems_.push_back(
        fmt::format("{}: expected floating-point numbers; found {}", name, c10::toString(view.scalar_type())));
    return;
  }
  const auto used = stored_part(stored, view);
  slot = used.to(options_.device, type);
  if (slot.is_alias_of(used) && slot.storage().allocator() == nullptr) {
    mapped_.add(slot);  // a view of the file: what was allocated has an allocator
    return;
  }
  converted_.emplace(key, slot);
  if (!slot.is_alias_of(used)) source_.drop_pages(name);
}

void WeightLoader::load_head_linear(const LayerPlan& plan, const std::string& role, Linear& linear) {
  const bool is_stored = is_stored_for_head(plan, role, linear);
  visit_weights(
      role, linear, [&](const std::string& weight_role, at::Tensor& slot, const std::vector<std::int64_t>& shape) {
        if (is_stored) return load_slot(plan, weight_role, shape, at::kFloat, slot);
        const double deviation = weight_role.ends_with(".weight") ? plan.head->initializer_range : 0;
        const auto initial = deviation > 0
                                 ? normal_by_name(shape, deviation, options_.seed, plan.name + "." + weight_role)
                                 : at::zeros(shape, at::kFloat);
        slot = initial.to(options_.device);
      });
}

bool WeightLoader::is_stored_for_head(const LayerPlan& plan, const std::string& role, const Linear& linear) const {
  const auto weights = present_names_of(plan, role + ".weight");
  if (weights.empty() && present_names_of(plan, role + ".bias").empty()) {
    log_info("model", "{}.{}: not in {}; starts fresh", plan.name, role, backbone_.folder.string());
    return false;
  }
  if (role != "classifier" || weights.empty()) return true;
  const auto shape = source_.shape(weights.front());
  if (!shape.empty() && shape.front() == linear.out_features) return true;
  log_info("model", "{}.{}: {} has it for {} labels, {} are wanted; starts fresh", plan.name, role,
           backbone_.folder.string(), shape.empty() ? 0 : shape.front(), linear.out_features);
  return false;
}

std::vector<std::string> WeightLoader::present_names_of(const LayerPlan& plan, const std::string& role) const {
  return present_names(backbone_.family->stored_weight(plan, role), source_);
}

void WeightLoader::check() const {
  if (problems_.empty()) return;
  throw ConfigError(
      fmt::format("{}: {} of the needed tensors cannot be used (is config.json of the same model?):\n  {}",
                  backbone_.folder.string(), problems_.size(), fmt::join(problems_, "\n  ")));
}

}  // namespace espalier::model
