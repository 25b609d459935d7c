// SPDX-License-Identifier: Apache-2.0
// One function for each family: config.json -> the plan of the chain, and the table of stored names. Each throws
// ConfigError naming file and key for what is missing, contradictory or not supported.
#pragma once

#include "model/backbone.h"
#include "model/config_file.h"

namespace espalier::model {

Backbone plan_bert(const ConfigFile& config, const HeadRequest& request);
/// RoBERTa and XLM-RoBERTa.
Backbone plan_roberta(const ConfigFile& config, const HeadRequest& request);
Backbone plan_t5(const ConfigFile& config, const HeadRequest& request);
Backbone plan_bart(const ConfigFile& config, const HeadRequest& request);
Backbone plan_opt(const ConfigFile& config, const HeadRequest& request);
Backbone plan_gpt2(const ConfigFile& config, const HeadRequest& request);
/// Llama and Mistral.
Backbone plan_llama(const ConfigFile& config, const HeadRequest& request);
Backbone plan_vit(const ConfigFile& config, const HeadRequest& request);

}  // namespace espalier::model
