// SPDX-License-Identifier: Apache-2.0
// How a tensor becomes trained: an owned fp32 leaf under its canonical name, put into the weight slot that the model
// reads.
#pragma once

#include <functional>
#include <map>
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

/// Makes the slot of one weight an fp32 leaf of its own that starts from what is stored, whatever it was rounded to.
/// Throws: as stored_weight().
void own_weight(model::StageSlice& slice, const model::LayerPlan& layer, const std::string& role,
                const model::WeightSource& weights, at::Tensor& slot);

/// Tied weights of the whole chain: each role whose stored tensor an earlier role holds too -> the first such role, by
/// canonical names.
using Copies = std::map<std::string, std::string>;
Copies find_copies(const model::Backbone& backbone, const model::WeightSource& weights);

/// Makes every weight of `layer` (of `slice`) trained, under layer name + "." + role, a copy under the name of its
/// original, and appends it to `trained`. Copies on one slice are leaves of their own that share one memory. Buffers do
/// not train.
void train_layer(model::StageSlice& slice, model::Layer& layer, const model::WeightSource& weights,
                 const Copies& copies, std::vector<TrainedTensor>& trained);

/// The same of those weights of `layer` that every method trains: a pooled head, a visual embedding. None may be there.
void train_task_weights(model::StageSlice& slice, model::Layer& layer, const model::WeightSource& weights,
                        std::vector<TrainedTensor>& trained);

/// Makes those weights of `layer` trained, without weight decay, that `is_wanted` picks: biases, norms.
using WeightChoice = std::function<bool(const std::string& role, const std::vector<std::int64_t>& shape)>;
void train_chosen(model::StageSlice& slice, model::Layer& layer, const model::WeightSource& weights,
                  const WeightChoice& is_wanted, std::vector<TrainedTensor>& trained);

}  // namespace espalier::peft
