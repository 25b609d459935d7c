// SPDX-License-Identifier: Apache-2.0
// One objective of a run: what it trains and learns, its optimizer, and how far it has come. A run has one, or several
// side networks that share the frozen forward; none knows of the others, so each gives the bits that it gives alone.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "model/backbone.h"
#include "optim/adamw.h"
#include "peft/method.h"
#include "train/config.h"
#include "train/metrics.h"

namespace espalier::train {

struct ObjectiveConfig {
  std::string name = {};  ///< empty for the only one
  peft::MethodConfig peft = {};
  model::HeadRequest head = {};
  data::DatasetInfo data = {};  ///< with the labels that it learns; training only
  optim::OptimizerConfig optimizer = {};
};

/// What the worker holds of one objective.
struct WorkerObjective {
  ObjectiveConfig config;    ///< what it was made of
  peft::Objective part;      ///< of its method, on this stage
  model::Backbone backbone;  ///< with the objective's head
  std::uint64_t seed = 0;    ///< of what trains
};

class ObjectiveState {
 public:
  /// Owns: nothing of `objective`, which outlives it.  Throws: ConfigError for a metric that its task does not have.
  ObjectiveState(const WorkerObjective& objective, const peft::Method& method, const TrainConfig& train);

  [[nodiscard]] const std::string& name() const { return objective_.config.name; }
  [[nodiscard]] const data::DatasetInfo& data() const { return objective_.config.data; }
  [[nodiscard]] const optim::OptimizerConfig& optimizer_config() const { return objective_.config.optimizer; }
  [[nodiscard]] optim::AdamW& optimizer() { return optimizer_; }
  [[nodiscard]] const optim::AdamW& optimizer() const { return optimizer_; }
  [[nodiscard]] const std::string& metric() const { return metric_; }
  [[nodiscard]] double distill_weight() const { return objective_.part.distill_weight; }

  /// Indices into the method's trained tensors of those that are not inert.
  [[nodiscard]] const std::vector<int>& active() const { return active_; }
  /// Places in active() of those that own their memory, as the optimizer has its parameters.
  [[nodiscard]] const std::vector<std::size_t>& updated() const { return updated_; }

  /// Takes the metrics of an evaluation; true when they are the best so far.
  bool consider(const Metrics& metrics, std::int64_t step);
  /// Copies of the tensors of the best evaluation, by the names that they have alone; maybe none.
  [[nodiscard]] std::map<std::string, at::Tensor>& best_tensors() { return best_tensors_; }
  [[nodiscard]] std::optional<double> best_value() const { return best_value_; }
  [[nodiscard]] std::int64_t best_step() const { return best_step_; }
  [[nodiscard]] std::int64_t evaluations_since_best() const { return evaluations_since_best_; }

  /// From here on nothing of it changes: it lost its patience, or diverged.
  void end(std::int64_t step, std::string reason);
  [[nodiscard]] bool is_training() const { return end_reason_.empty(); }
  [[nodiscard]] const std::string& end_reason() const { return end_reason_; }
  [[nodiscard]] std::int64_t end_step() const { return end_step_; }

  /// What a checkpoint's state says of it, and going on from there.
  [[nodiscard]] nlohmann::json state() const;
  void set_state(const nlohmann::json& state);

 private:
  const WorkerObjective& objective_;
  std::vector<int> active_;
  std::vector<std::size_t> updated_;
  optim::AdamW optimizer_;
  std::string metric_;
  std::map<std::string, at::Tensor> best_tensors_;
  std::optional<double> best_value_;
  std::int64_t best_step_ = -1;
  std::int64_t evaluations_since_best_ = 0;
  std::string end_reason_;
  std::int64_t end_step_ = -1;
};

}  // namespace espalier::train
