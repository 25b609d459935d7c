// SPDX-License-Identifier: Apache-2.0
// BERT: Devlin et al., NAACL 2019; folders as `transformers` saves BertModel and BertFor*.
#pragma once

#include "model/backbone.h"
#include "model/config_file.h"

namespace espalier::model {

/// Throws: ConfigError naming file and key.
Backbone plan_bert(const ConfigFile& config, const HeadRequest& head);

}  // namespace espalier::model
