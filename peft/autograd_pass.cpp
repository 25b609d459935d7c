// SPDX-License-Identifier: Apache-2.0
#include "peft/autograd_pass.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

#include "common/check.h"

namespace espalier::peft {

model::Carry make_leaves(model::Carry& incoming, const model::CarryPlan& plan) {
  model::Carry leaves;
  for (const model::CarryEntry& entry : plan) {
    if (entry.needs_gradient) {
      at::Tensor& value = incoming.at(entry.name);
      value = value.detach().requires_grad_(true);
      leaves.emplace(entry.name, value);
    }
  }
  return leaves;
}

AutogradPass::AutogradPass(model::Carry leaves, model::Carry outputs, const std::vector<TrainedTensor>& trained)
    : leaves_(std::move(leaves)), outputs_(std::move(outputs)) {
  for (std::size_t i = 0; i < trained.size(); ++i) {
    if (!trained[i].is_inert) {
      trained_.push_back(trained[i].value);
      trained_index_.push_back(static_cast<int>(i));
    }
  }
}

model::Carry AutogradPass::backward(const model::Carry& output_gradients, const GradientSink& sink) {
  ESPALIER_CHECK(!outputs_.empty(), "backward may be called once");
  torch::autograd::variable_list outputs, gradients, inputs;
  for (auto& [name, value] : outputs_) {
    const auto gradient = output_gradients.find(name);
    ESPALIER_CHECK(gradient != output_gradients.end(), "no gradient for the outgoing '{}'", name);
    outputs.push_back(std::move(value));
    gradients.push_back(gradient->second);
  }
  outputs_.clear();
  for (const auto& [name, leaf] : leaves_) {
    inputs.push_back(leaf);
  }
  inputs.insert(inputs.end(), trained_.begin(), trained_.end());

  // retain_graph stays off: the engine frees what each node saved as soon as the node has run.
  torch::autograd::variable_list results = torch::autograd::grad(outputs, inputs, gradients, /*retain_graph=*/false,
                                                                 /*create_graph=*/false, /*allow_unused=*/true);

  model::Carry input_gradients;
  std::size_t next = 0;
  for (const auto& [name, leaf] : leaves_) {
    ESPALIER_CHECK(results[next].defined(), "the graph did not reach the incoming '{}'", name);
    input_gradients.emplace(name, results[next++].contiguous());
  }
  for (const int index : trained_index_) {
    at::Tensor& gradient = results[next++];
    sink(index, gradient.defined() ? gradient.contiguous() : at::Tensor());
  }
  return input_gradients;
}

StageResult finish_stage(model::Carry outputs, model::Carry leaves, const std::vector<TrainedTensor>& trained,
                         bool keeps_pass) {
  StageResult result;
  model::Carry in_graph;
  for (auto& entry : outputs) {
    auto& [name, value] = entry;
    result.outgoing.emplace(name, value.detach());
    if (value.requires_grad()) {
      in_graph.insert(std::move(entry));
    }
  }
  if (keeps_pass && !in_graph.empty()) {
    result.pass = std::make_unique<AutogradPass>(std::move(leaves), std::move(in_graph), trained);
  }
  return result;
}

}  // namespace espalier::peft
