// SPDX-License-Identifier: Apache-2.0
// What the planning of every family needs: adding layers to the chain, reading the keys that all configs share. What is
// refused throws ConfigError by file and key.
#pragma once

#include <string>
#include <vector>

#include "model/backbone.h"
#include "model/config_file.h"

namespace espalier::model {

/// Appends a layer called `name` and returns it to be filled; the reference holds until the next one is added.
LayerPlan& add_layer(Backbone& backbone, LayerKind kind, std::string name, Stack stack = Stack::kOnly);
/// Appends blocks `name`.0 ... with the same spec.
void add_blocks(Backbone& backbone, const std::string& name, std::int64_t count, const BlockSpec& block,
                Stack stack = Stack::kOnly);

/// The activation called by `key`; refused by file and key when it is unknown.
Activation read_activation(const ConfigFile& config, const std::string& key, const std::string& fallback);
/// The activation called `name`, which stands in `key`.
Activation parse_activation(const ConfigFile& config, const std::string& key, const std::string& name);
/// width / heads. Refuses a width that the heads do not divide.
std::int64_t read_head_width(const ConfigFile& config, std::int64_t width, std::int64_t num_heads,
                             const std::string& heads_key);
/// Number of labels: as asked for, or id2label, or num_labels, or 2.
std::int64_t read_num_labels(const ConfigFile& config, const HeadRequest& request);
/// Refuses `key` unless it is absent or says `only`.
void expect_text(const ConfigFile& config, const std::string& key, const std::string& only);
/// The same of a flag; `why` ends the message.
void expect_flag(const ConfigFile& config, const std::string& key, bool only, const std::string& why);
/// Refuses quantised and pruned folders.
void refuse_altered_weights(const ConfigFile& config);
/// Whether the head is to be a language model's: as asked for, or as config.json's architecture says
/// ("...ForCausalLM").
bool wants_language_model(const ConfigFile& config, const HeadRequest& request, bool is_usual);

/// Appends the head of a language model: the vocabulary over the backbone's width. To be refined by the family.
HeadSpec& add_language_model_head(Backbone& backbone, Stack stack = Stack::kOnly);
/// Appends the head of an encoder-decoder's classifier: drop, dense, tanh, drop, classifier over the state of the last
/// end-of-sequence token (or the mean of all); the family says which token that is.
HeadSpec& add_sequence_head(Backbone& backbone, const ConfigFile& config, const HeadRequest& request);
/// Appends the head of a causal model: that of a language model, without bias, or for a classifier one linear without
/// bias over the state of the last token.
HeadSpec& add_causal_head(Backbone& backbone, const ConfigFile& config, const HeadRequest& request);

}  // namespace espalier::model
