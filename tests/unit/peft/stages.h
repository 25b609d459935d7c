// SPDX-License-Identifier: Apache-2.0
// A small random BERT, and the stages of a method on a model run by hand in one process: what an executor does, without
// ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "peft/method.h"

namespace espalier::peft {

struct TinyConfig {
  std::int64_t width = 16, num_blocks = 4, num_heads = 2, feed_forward_width = 32, vocab_size = 40, num_positions = 16;
  std::int64_t num_labels = 3;
  double dropout = 0.1;
  std::string pooling = "auto";
};

/// The plan of a config.json written for the purpose.
model::Backbone plan_config(const nlohmann::json& config, const model::HeadRequest& head = {});
model::Backbone plan_tiny(const TinyConfig& config);

struct TinyModel {
  model::Backbone backbone;
  std::unique_ptr<model::WeightSource> weights;
};
TinyModel make_tiny(const TinyConfig& config);

/// Three rows of eight tokens, two of them padded.
model::NamedTensors make_batch();

/// Training at some step and micro-batch.
model::ForwardContext training_context();

struct Step {
  at::Tensor logits;
  std::map<std::string, at::Tensor> gradients;  ///< by canonical name; summed over copies, undefined ones left out
  std::vector<std::vector<std::string>>
      sent_back;  ///< names of the gradients that crossed each boundary, from the first on
};

/// Gradient of a loss with respect to the logits.
using LossGradient = std::function<at::Tensor(const at::Tensor& logits)>;

/// Gradient of the mean cross-entropy against labels 0, 1, 2, ...
at::Tensor logits_gradient(const at::Tensor& logits);

/// Gradient of the mean loss of the backbone's head against `labels`: of classes, or of the tokens that its language
/// model predicts. `loss` (optional) receives the loss itself. Owns: nothing of `backbone`, which outlives it.
LossGradient gradient_of_loss(const model::Backbone& backbone, const at::Tensor& labels, double* loss = nullptr);

/// All stages of one layout.
class Stages {
 public:
  /// `runs_first_event`: what a trainer does before the first step (Resampling).
  Stages(const TinyModel& tiny, const MethodConfig& config, int num_stages, const model::SliceOptions& options = {},
         bool runs_first_event = true);

  /// Forward and backward of one micro-batch; expects every carry to be as planned.
  Step step(model::NamedTensors batch, const model::ForwardContext& context,
            const LossGradient& loss_gradient = logits_gradient);
  /// Logits without keeping anything.
  at::Tensor evaluate(const model::NamedTensors& batch);

  [[nodiscard]] std::vector<TrainedTensor> trained() const;
  /// Requires: a trained tensor of that name.
  [[nodiscard]] at::Tensor trained(const std::string& name) const;

  std::vector<std::unique_ptr<model::StageSlice>> slices;
  std::vector<std::unique_ptr<Method>> methods;
};

/// The backbone with its head, as loaded, in evaluation mode. `hidden` (optional): the output of every layer before the
/// head.
at::Tensor run_bare(const TinyModel& tiny, const model::NamedTensors& batch, const model::SliceOptions& options = {},
                    std::vector<at::Tensor>* hidden = nullptr);

/// An event of ROSA on every stage.
void run_event(const Stages& stages, std::int64_t event);

/// Moves every trained tensor off its start, gates by a quarter of `size`, so that no term is too small to be seen.
void stir(const Stages& stages, double size);

/// The loss itself, in double.
double loss_of(const at::Tensor& logits);

/// Holds the gradients of every trained tensor of the first stage to central differences of what it sends on as
/// `entry`, in evaluation mode; those of an embedding whose tables train are passed over. Fails where that leaves
/// nothing. Requires: a compute type of double.
void expect_finite_differences(Stages& stages, const std::string& entry);

/// What a micro-batch needs above what lived before.
struct UsedBytes {
  std::int64_t kept = 0;  ///< between forward and backward
  std::int64_t peak = 0;  ///< at most
};
/// Of the only stage, not in its first micro-batch.
UsedBytes used_bytes(const TinyConfig& config, const MethodConfig& method);

/// What a ConfigError of `run` says; nothing, where it ends well.
std::string config_error(const std::function<void()>& run);

/// Largest difference over the largest expected number.
double relative_error(const at::Tensor& found, const at::Tensor& expected);

std::vector<MethodConfig> all_methods();

}  // namespace espalier::peft
