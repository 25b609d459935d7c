// SPDX-License-Identifier: Apache-2.0
// The objectives of a run: one, or side networks that share the frozen forward, from [objective.NAME] sections or the
// grid of a [sweep].
#pragma once

#include <string>
#include <vector>

#include "common/options.h"
#include "data/dataset.h"
#include "launch/run_config.h"
#include "train/objective.h"

namespace espalier::launch {

/// The options of one objective: the run's, with its own values in place of some.
struct ObjectiveOptions {
  std::string name;             ///< empty for the only one
  RunConfig run;                ///< of which model, layout and loop are the run's
  std::string adapter_options;  ///< adapter_options() of it
};

/// Declares the sections [objective.NAME] and [sweep].
void describe_objectives(OptionTable& table);

/// One without a name where neither section was given. A [sweep] gives every combination of its values, which stand
/// between '|', each named after them.
/// Throws: ConfigError naming file and line for values out of range, when both kinds of section are there, and for a
/// flag whose option a file's section sets.
std::vector<ObjectiveOptions> plan_objectives(const OptionTable& table);

/// Names of the objectives, for messages.
std::string names_of(const std::vector<ObjectiveOptions>& objectives);
/// The one called `name`. Throws: ConfigError listing the names there are.
const ObjectiveOptions& find_objective(const std::vector<ObjectiveOptions>& objectives, const std::string& name);

/// What the objective trains and learns of the dataset. Throws: ConfigError for a label column that is not there.
train::ObjectiveConfig make_objective(const ObjectiveOptions& options, const data::DatasetInfo& dataset);

}  // namespace espalier::launch
