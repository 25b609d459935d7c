// SPDX-License-Identifier: Apache-2.0
#include "optim/adamw.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <numbers>

#include "common/check.h"
#include "common/error.h"

namespace espalier::optim {
namespace {

// Chunks, not threads, cut the sum, so that the thread count does not change its bits.
constexpr std::int64_t kChunkElements = 1 << 15;
constexpr std::int64_t kLanes = 8;  // independent partial sums: a single one would wait for each addition

double chunk_sum_of_squares(const float* values, std::int64_t num_elements) {
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= num_elements; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = values[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (std::int64_t lane = 0; i < num_elements; ++i, ++lane) {
    const double value = values[i];
    lanes[lane] += value * value;
  }
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

double host_sum_of_squares(const at::Tensor& gradient) {
  const at::Tensor dense = gradient.contiguous();
  const auto* values = dense.const_data_ptr<float>();
  const std::int64_t num_elements = dense.numel();
  const std::int64_t num_chunks = (num_elements + kChunkElements - 1) / kChunkElements;
  std::vector<double> partial(static_cast<std::size_t>(num_chunks));
  at::parallel_for(0, num_chunks, /*grain_size=*/4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      const std::int64_t first = chunk * kChunkElements;
      partial[static_cast<std::size_t>(chunk)] =
          chunk_sum_of_squares(values + first, std::min(kChunkElements, num_elements - first));
    }
  });
  double sum = 0;
  for (const double part : partial) sum += part;
  return sum;
}

std::int64_t num_warmup_steps(const OptimizerConfig& config, std::int64_t num_steps) {
  if (config.warmup_steps >= 0) return config.warmup_steps;
  return static_cast<std::int64_t>(std::ceil(config.warmup_fraction * static_cast<double>(num_steps)));
}

}  // namespace

void describe(OptionTable& table, OptimizerConfig& config) {
  table.add("optimizer.learning_rate", config.learning_rate)
      .at_least(0)
      .help("Highest learning rate: the one at the end of the warm-up.");
  table.add("optimizer.weight_decay", config.weight_decay)
      .at_least(0)
      .help("Decoupled weight decay of the trained tensors; biases, norms and gates do not decay.");
  table.add("optimizer.beta1", config.beta1)
      .at_least(0)
      .below(1)
      .help("Decay of the mean of the gradients. Larger: smoother and slower to turn.");
  table.add("optimizer.beta2", config.beta2)
      .at_least(0)
      .below(1)
      .help("Decay of the mean of the squared gradients. Larger: steadier step sizes.");
  table.add("optimizer.epsilon", config.epsilon)
      .above(0)
      .help("Added to the root of the second moment. Larger: smaller steps where gradients are tiny.");
  table.add("optimizer.clip_norm", config.clip_norm)
      .at_least(0)
      .help("Gradients are scaled down to this global norm, taken over all stages. 0: no clipping.");
  table.add("optimizer.schedule", config.schedule)
      .choices({"linear", "cosine", "constant"})
      .help("Course of the learning rate after the warm-up: down to 0 at the last step, or constant.");
  table.add("optimizer.warmup_fraction", config.warmup_fraction)
      .at_least(0)
      .at_most(1)
      .help("Part of all steps, rounded up, in which the learning rate rises from 0.");
  table.add("optimizer.warmup_steps", config.warmup_steps)
      .unit("steps")
      .at_least(-1)
      .help("Length of the warm-up. -1: as optimizer.warmup_fraction says.");
}

double learning_rate_at(const OptimizerConfig& config, std::int64_t step, std::int64_t num_steps) {
  const std::int64_t num_warmup = num_warmup_steps(config, num_steps);
  if (step < num_warmup) {
    return config.learning_rate * static_cast<double>(step) / static_cast<double>(num_warmup);
  }
  if (config.schedule == "constant") return config.learning_rate;
  const double remaining = static_cast<double>(std::max<std::int64_t>(0, num_steps - step)) /
                           static_cast<double>(std::max<std::int64_t>(1, num_steps - num_warmup));
  if (config.schedule == "linear") return config.learning_rate * remaining;
  if (config.schedule == "cosine") {
    return config.learning_rate * 0.5 * (1.0 + std::cos(std::numbers::pi * (1.0 - remaining)));
  }
  throw ConfigError(
      fmt::format("optimizer.schedule: expected linear, cosine or constant, found '{}'", config.schedule));
}

AdamW::AdamW(const OptimizerConfig& config, std::vector<Parameter> parameters)
    : config_(config), parameters_(std::move(parameters)) {
  groups_[0].weight_decay = config_.weight_decay;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& parameter = parameters_[i];
    ESPALIER_CHECK(parameter.value.scalar_type() == at::kFloat && parameter.value.is_contiguous(),
                   "parameter {} is not fp32 and contiguous", parameter.name);
    // A detached alias: in-place updates of a leaf that requires grad are refused.
    const at::Tensor value = parameter.value.detach();
    if (!steps_.defined()) {
      steps_ = at::zeros({static_cast<std::int64_t>(parameters_.size())}, value.options());
      starts_ = at::zeros_like(steps_);
    }
    Group& group = groups_[parameter.decays ? 0 : 1];
    group.members.push_back(i);
    group.values.push_back(value);
    group.exp_avg.push_back(at::zeros_like(value));
    group.exp_avg_sq.push_back(at::zeros_like(value));
    group.steps.push_back(steps_.select(0, static_cast<std::int64_t>(i)));
  }
}

void AdamW::step(const std::vector<at::Tensor>& gradients, double learning_rate) {
  ESPALIER_CHECK_EQ(gradients.size(), parameters_.size());
  if (parameters_.empty()) {
    ++num_steps_;
    return;
  }
  set_num_steps(num_steps_ + 1);
  for (Group& group : groups_) {
    if (group.members.empty()) continue;
    std::vector<at::Tensor> group_gradients;
    group_gradients.reserve(group.members.size());
    for (const std::size_t i : group.members) {
      const at::Tensor& gradient = gradients[i];
      ESPALIER_CHECK(gradient.defined() && gradient.sizes() == parameters_[i].value.sizes(),
                     "gradient of {}: undefined or of another shape than the parameter", parameters_[i].name);
      // The fused kernel walks the storage of all four tensors with one index.
      group_gradients.push_back(gradient.detach().contiguous());
    }
    at::_fused_adamw_(group.values, group_gradients, group.exp_avg, group.exp_avg_sq, /*max_exp_avg_sqs=*/{},
                      group.steps, learning_rate, config_.beta1, config_.beta2, group.weight_decay, config_.epsilon,
                      /*amsgrad=*/false, /*maximize=*/false);
  }
}

std::map<std::string, at::Tensor> AdamW::state() const {
  std::map<std::string, at::Tensor> tensors;
  for (const Group& group : groups_) {
    for (std::size_t k = 0; k < group.members.size(); ++k) {
      const std::string& name = parameters_[group.members[k]].name;
      tensors.emplace(name + "/exp_avg", group.exp_avg[k]);
      tensors.emplace(name + "/exp_avg_sq", group.exp_avg_sq[k]);
    }
  }
  return tensors;
}

void AdamW::set_num_steps(std::int64_t num_steps) {
  num_steps_ = num_steps;
  if (steps_.defined()) steps_.fill_(static_cast<double>(num_steps)).sub_(starts_);
}

void AdamW::restart(const std::set<std::string>& names) {
  for (Group& group : groups_) {
    for (std::size_t k = 0; k < group.members.size(); ++k) {
      const std::size_t i = group.members[k];
      if (!names.contains(parameters_[i].name)) continue;
      group.exp_avg[k].zero_();
      group.exp_avg_sq[k].zero_();
      starts_.select(0, static_cast<std::int64_t>(i)).fill_(static_cast<double>(num_steps_));
    }
  }
  set_num_steps(num_steps_);
}

std::int64_t AdamW::state_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : state()) bytes += static_cast<std::int64_t>(tensor.nbytes());
  return bytes;
}

std::vector<double> squared_norms(const std::vector<at::Tensor>& gradients) {
  std::vector<double> squared(gradients.size());
  std::vector<at::Tensor> on_device;
  std::vector<std::size_t> places;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const at::Tensor gradient = gradients[i].detach();
    ESPALIER_CHECK(gradient.scalar_type() == at::kFloat, "gradient {} is not fp32", i);
    if (gradient.is_cpu()) {
      squared[i] = host_sum_of_squares(gradient);
    } else {
      on_device.push_back(
          at::linalg_vector_norm(gradient, 2, at::OptionalIntArrayRef{}, /*keepdim=*/false, at::kDouble).square());
      places.push_back(i);
    }
  }
  if (!on_device.empty()) {  // one transfer for all
    const at::Tensor host = at::stack(on_device).cpu();
    for (std::size_t k = 0; k < places.size(); ++k) squared[places[k]] = host.const_data_ptr<double>()[k];
  }
  return squared;
}

double combine_norm(const std::vector<double>& squared) {
  double sum = 0;
  for (const double part : squared) sum += part;
  return std::sqrt(sum);
}

void clip_by_norm(std::vector<at::Tensor>& gradients, double norm, double clip) {
  // A stage may train nothing.
  if (clip <= 0 || !(norm > clip) || gradients.empty()) return;
  const at::NoGradGuard no_grad;
  at::_foreach_mul_(gradients, clip / norm);
}

}  // namespace espalier::optim
