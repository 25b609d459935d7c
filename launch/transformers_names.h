// SPDX-License-Identifier: Apache-2.0
// What `transformers` calls the parts of a backbone with its head, and canonical weights back in the form in which a
// folder stores them: shared by the exports that other programs read.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "model/slice.h"
#include "model/weights.h"

namespace espalier::launch {

/// Name of a weight in a checkpoint of transformers_class(): "bert.encoder.layer.3.attention.self.query.weight".
std::string checkpoint_name(const model::Backbone& backbone, const model::LayerPlan& layer, const std::string& role);

/// Name of the parameter as the program has it, which may differ from what checkpoints say (ViT since transformers 5).
std::string parameter_name(const model::Backbone& backbone, const std::string& checkpoint_name);

/// Class of the model with its head: "BertForSequenceClassification".
/// Throws: ConfigError for a model or a pooling that `transformers` does not have.
std::string transformers_class(const model::Backbone& backbone, const std::string& pooling);

/// `weights` by canonical name, as the folder stores them: transposed, several roles in one tensor, and under every
/// name that holds a copy of a tied one. Types are those of `weights`; a weight that the folder lacks comes under its
/// checkpoint_name(). The first role of a stored tensor brings the rest of it along.
std::map<std::string, at::Tensor> to_stored(const model::Backbone& backbone, const model::WeightSource& source,
                                            const std::map<std::string, at::Tensor>& weights);

}  // namespace espalier::launch
