// SPDX-License-Identifier: Apache-2.0
// Linears of the blocks, chosen by role or one by one: what low-rank factors (LoRA, ROSA) are put on, and the biases
// that train beside them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "peft/method.h"

namespace espalier::peft {

/// One chosen linear of one block.
struct LinearTarget {
  std::string role;          ///< "attention.query"
  std::uint64_t linear = 0;  ///< place among the block's linears: tells the dropout sites of a block apart
  std::int64_t in_features = 0, out_features = 0;
  [[nodiscard]] std::int64_t smaller_width() const { return in_features < out_features ? in_features : out_features; }
};

/// `key`: the option that holds `targets`, each a role ("attention.query", in every block that has it) or the name of
/// one linear ("encoder.3.attention.query"). Throws: ConfigError for a repeated target and for one that no block of the
/// backbone has (listing the roles there are).
void check_targets(const std::string& key, const std::vector<std::string>& targets, const model::Backbone& backbone);

/// The targets that a block of `spec`, called `layer_name`, has; in the block's own order.
std::vector<LinearTarget> plan_targets(const std::vector<std::string>& targets, const model::BlockSpec& spec,
                                       const std::string& layer_name);

/// The same targets in those layers of the chain alone that `is_wanted` picks, by name.
/// Throws: ConfigError for a target that no such layer has.
std::vector<std::string> targets_within(const std::string& key, const std::vector<std::string>& targets,
                                        const model::Backbone& backbone, const std::function<bool(int)>& is_wanted);

/// Chain index of the first layer that trains when every block does: the first block, or below it a visual embedding.
int first_trained_by_blocks(const model::Backbone& backbone);

/// Which biases of the backbone train beside factors on `targets`: none; targets: those of their linears; all.
struct BiasChoice {
  std::string biases;
  std::vector<std::string> targets;
};
/// "peft.<method>.biases" of `method`.
void describe_biases(OptionTable& table, const std::string& method, std::string& biases);
/// Whether `role` of `layer`, a weight of `shape`, is one of these biases.
bool is_chosen_bias(const BiasChoice& choice, const model::Backbone& backbone, const model::LayerPlan& layer,
                    const std::string& role, const std::vector<std::int64_t>& shape);
/// Scalars of these biases.
std::int64_t count_biases(const BiasChoice& choice, const model::Backbone& backbone);
/// Makes those of `layer` trained.
void train_biases(const BiasChoice& choice, model::StageSlice& slice, model::Layer& layer,
                  const model::WeightSource& weights, std::vector<TrainedTensor>& trained);
/// Chain index of the first layer with a target or one of these biases, or a visual embedding. `method`: whose they
/// are. Throws: ConfigError where all biases are asked for and there are none.
int first_trained_by_targets(const std::string& method, const BiasChoice& choice, const model::Backbone& backbone);

}  // namespace espalier::peft
