// SPDX-License-Identifier: Apache-2.0
// How a tensor becomes trained: an owned fp32 leaf under its canonical name, put into the weight slot that the model
// reads.
#pragma once

#include <string>
#include <vector>

#include "peft/method.h"

namespace espalier::peft {

/// The stored tensor of a role as a view of the mapped file, in its stored type.
/// Throws: ConfigError where the folder lacks it.
at::Tensor stored_weight(const model::Backbone& backbone, const model::LayerPlan& layer, const std::string& role,
                         const model::WeightSource& weights);

/// A leaf that requires grad, holding a copy of `value` in fp32 on `device`; decays unless it has one dimension.
TrainedTensor make_trained(std::string name, const at::Tensor& value, at::Device device);

/// Makes every weight of `layer` (of `slice`) trained, under layer name + "." + role, and appends it to `trained`.
void train_layer(model::StageSlice& slice, model::Layer& layer, const model::WeightSource& weights,
                 std::vector<TrainedTensor>& trained);

}  // namespace espalier::peft
