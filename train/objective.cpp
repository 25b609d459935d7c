// SPDX-License-Identifier: Apache-2.0
#include "train/objective.h"

#include <cmath>
#include <set>
#include <utility>

namespace espalier::train {
namespace {

std::vector<int> find_active(const peft::Objective& part, const peft::Method& method) {
  std::vector<int> active;
  for (int i = part.first_trained; i < part.end_trained; ++i) {
    if (!method.trained()[static_cast<std::size_t>(i)].is_inert) {
      active.push_back(i);
    }
  }
  return active;
}

/// The first place of every name: further ones share its memory.
std::vector<std::size_t> find_owners(const std::vector<int>& active, const peft::Method& method) {
  std::vector<std::size_t> owners;
  std::set<std::string> seen;
  for (std::size_t i = 0; i < active.size(); ++i) {
    if (seen.insert(method.trained()[static_cast<std::size_t>(active[i])].name).second) {
      owners.push_back(i);
    }
  }
  return owners;
}

std::vector<optim::Parameter> parameters_of(const std::vector<int>& active, const std::vector<std::size_t>& owners,
                                            const peft::Method& method) {
  std::vector<optim::Parameter> parameters;
  for (const auto owner : owners) {
    const auto& tensor = method.trained()[static_cast<std::size_t>(active[owner])];
    parameters.push_back({tensor.name, tensor.value, tensor.decays});
  }
  return parameters;
}

}  // namespace

ObjectiveState::ObjectiveState(const WorkerObjective& objective, const peft::Method& method, const TrainConfig& train)
    : objective_(objective),
      active_(find_active(objective.part, method)),
      updated_(find_owners(active_, method)),
      optimizer_(objective.config.optimizer, parameters_of(active_, updated_, method)),
      metric_(train.best_metric == "auto" ? default_metric(data().task) : train.best_metric) {
  require_metric(data().task, metric_);
}

bool ObjectiveState::consider(const Metrics& metrics, std::int64_t step) {
  const double value = metrics.at(metric_);
  // Nothing would be better than what is no number.
  const bool is_best = std::isfinite(value) && (!best_value_ || is_better(metric_, value, *best_value_));
  if (is_best) {
    best_value_ = value;
    best_step_ = step;
    evaluations_since_best_ = 0;
  } else {
    ++evaluations_since_best_;
  }
  return is_best;
}

void ObjectiveState::end(std::int64_t step, std::string reason) {
  end_step_ = step;
  end_reason_ = std::move(reason);
}

nlohmann::json ObjectiveState::state() const {
  nlohmann::json state = {
      {"name", name()}, {"best_step", best_step_}, {"evaluations_since_best", evaluations_since_best_}};
  if (best_value_) {
    state["best_value"] = *best_value_;
  }
  if (!is_training()) {
    state["end_step"] = end_step_;
    state["end_reason"] = end_reason_;
  }
  return state;
}

void ObjectiveState::set_state(const nlohmann::json& state) {
  best_step_ = state.value("best_step", std::int64_t{-1});
  evaluations_since_best_ = state.value("evaluations_since_best", std::int64_t{0});
  if (state.contains("best_value")) {
    best_value_ = state.at("best_value").get<double>();
  }
  end_step_ = state.value("end_step", std::int64_t{-1});
  end_reason_ = state.value("end_reason", std::string());
}

}  // namespace espalier::train
