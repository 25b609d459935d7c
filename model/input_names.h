// SPDX-License-Identifier: Apache-2.0
// Which arrays a model reads of a batch, under their `transformers` names.
#pragma once

#include <set>
#include <string>

#include "model/backbone.h"

namespace espalier::model {

/// Labels not among them: a loss reads those. An array that the model would ignore is not there.
std::set<std::string> input_names(const Backbone& backbone);

}  // namespace espalier::model
