// SPDX-License-Identifier: Apache-2.0
// RoBERTa (Liu et al., 2019) and XLM-RoBERTa (Conneau et al., ACL 2020), whose folders have the same shape.
#pragma once

#include "model/backbone.h"
#include "model/config_file.h"

namespace espalier::model {

/// Throws: ConfigError naming file and key.
Backbone plan_roberta(const ConfigFile& config, const HeadRequest& head);

}  // namespace espalier::model
