// SPDX-License-Identifier: Apache-2.0
// Runs a model as stages that are cut anywhere in the chain, handing the carry over as a transport would: copies of
// what the plan of the boundary names, in the shapes that it names.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <functional>
#include <utility>
#include <vector>

#include "model/slice.h"

namespace espalier::test {

/// Called after every layer with its index in the chain.
using AfterLayer = std::function<void(int layer, const model::Carry& carry)>;

/// Stages begin at layer 0 and at every one of `cuts` (ascending). Returns the last stage's carry.
inline model::Carry run_in_stages(const model::Backbone& backbone, const model::WeightSource& weights,
                                  std::vector<int> cuts, const model::NamedTensors& tensors,
                                  const model::ForwardContext& context, const AfterLayer& after_layer = {}) {
  const at::NoGradGuard no_grad;
  cuts.push_back(backbone.num_layers());
  model::Carry carry;
  int first = 0;
  for (const int end : cuts) {
    const model::StageSlice slice(backbone, {first, end}, weights, {});
    auto completed = tensors;
    model::complete_decoder_inputs(backbone, completed);
    const auto shape = model::batch_shape(backbone, completed);
    const auto inputs = slice.prepare(std::move(completed));
    if (first > 0) {
      model::Carry received;
      for (const auto& entry : model::plan_chain_carry(backbone, first, shape, at::kFloat)) {
        EXPECT_EQ(carry.at(entry.name).sizes().vec(), entry.sizes) << entry.name;
        received[entry.name] = carry.at(entry.name).clone();
      }
      carry = std::move(received);
    }
    for (const auto& layer : slice.layers()) {
      layer->forward(carry, inputs, context);
      if (after_layer) after_layer(static_cast<int>(layer->plan().index), carry);
    }
    first = end;
  }
  return carry;
}

/// Every way to cut a chain of `num_layers` into one, two and three stages.
inline std::vector<std::vector<int>> every_cut(int num_layers) {
  std::vector<std::vector<int>> cuts = {{}};
  for (int one = 1; one < num_layers; ++one) {
    cuts.push_back({one});
    for (int two = one + 1; two < num_layers; ++two) cuts.push_back({one, two});
  }
  return cuts;
}

}  // namespace espalier::test
