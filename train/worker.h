// SPDX-License-Identifier: Apache-2.0
// What one rank holds of a run: its place in the mesh, its slice of the backbone, the method on it, and the executor.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "data/dataset.h"
#include "data/sampler.h"
#include "dist/mesh.h"
#include "peft/method.h"
#include "train/config.h"
#include "train/objective.h"
#include "train/stage_executor.h"

namespace espalier::train {

/// The communicators a rank was started with. `device` is null where host tensors are all there is.
struct Ranks {
  dist::Communicator& control;
  dist::Communicator* device = nullptr;
  int node_rank = 0;
  int ranks_on_node = 1;
};

struct WorkerConfig {
  ModelConfig model;
  ParallelConfig parallel;
  std::uint64_t seed = 0;
  std::vector<ObjectiveConfig> objectives = {};  ///< at least one
  bool batched = false;                          ///< TrainConfig's
};

/// The weights that the options name. Throws: ConfigError naming file and tensor.
std::unique_ptr<model::WeightSource> open_weights(const ModelConfig& config, const model::Backbone& backbone);

/// Collated host tensors with the shape that carries are planned from (complete_decoder_inputs(), batch_shape()).
MicroBatch make_micro_batch(const model::Backbone& backbone, int index, model::NamedTensors inputs);
/// Rows of a split, collated as the options say: how a dataset gets to the executor. Throws: as Split::collate().
MicroBatch make_micro_batch(const model::Backbone& backbone, int index, const data::Split& split,
                            const std::vector<std::int64_t>& rows, const data::DataConfig& config);

/// Scalars of the whole model, over all stages of one replica; tied ones once, buffers not.
struct ParameterCount {
  std::vector<std::int64_t> trained;  ///< by objective
  std::int64_t frozen = 0;
};

class Worker {
 public:
  /// Collective: every rank.  Owns: nothing of `ranks`, whose communicators outlive it.
  /// Throws: ConfigError for a layout, model folder, method or device that does not fit, IoError from the weights'
  /// files; maybe on one rank alone.
  Worker(const WorkerConfig& config, const Ranks& ranks);

  [[nodiscard]] dist::Mesh& mesh() { return mesh_; }
  [[nodiscard]] const dist::MeshPlace& place() const { return mesh_.place; }
  [[nodiscard]] model::StageSlice& slice() { return *slice_; }
  [[nodiscard]] peft::Method& method() { return *method_; }
  [[nodiscard]] StageExecutor& executor() { return *executor_; }
  [[nodiscard]] std::size_t num_objectives() const { return objectives_.size(); }
  [[nodiscard]] const WorkerObjective& objective(std::size_t index = 0) const { return objectives_[index]; }
  /// Of each objective, the dataset with the labels that it learns, as its ObjectiveConfig has it.
  [[nodiscard]] std::vector<data::DatasetInfo> datasets() const;
  /// With the head of the first objective.
  [[nodiscard]] const model::Backbone& backbone() const { return objectives_.front().backbone; }
  /// Of the whole model.
  [[nodiscard]] const model::WeightSource& weights() const { return *weights_; }
  /// Of the whole folder's weights; rank 0 has read them, every rank knows it.
  [[nodiscard]] const std::string& model_digest() const { return model_digest_; }
  [[nodiscard]] at::Device device() const { return slice_->options().device; }
  [[nodiscard]] dist::Communicator& control() { return *mesh_.control; }

  /// Collective: every rank.
  [[nodiscard]] ParameterCount count_parameters();
  /// Of this stage.
  [[nodiscard]] std::span<const peft::TrainedTensor> trained(std::size_t objective) const;

  /// What this stage's training made of an objective, by the names that it has alone: the trained tensors, of places of
  /// a tied one the first, and those that the method keeps beside them. Live, without grad.
  [[nodiscard]] std::map<std::string, at::Tensor> result(std::size_t objective = 0) const;
  /// Copies these back. Throws: ConfigError naming a tensor that `tensors` lacks or that has another shape.
  void load_result(const std::map<std::string, at::Tensor>& tensors, std::size_t objective = 0);

 private:
  std::vector<WorkerObjective> objectives_;
  std::unique_ptr<model::WeightSource> weights_;
  dist::Mesh mesh_;
  std::string model_digest_;
  std::unique_ptr<model::StageSlice> slice_;
  std::unique_ptr<peft::Method> method_;
  std::unique_ptr<StageExecutor> executor_;
};

}  // namespace espalier::train
