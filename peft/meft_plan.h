// SPDX-License-Identifier: Apache-2.0
// What the options of MEFT mean for one backbone: which blocks are reversible, what the streams are multiplied by, how
// they are merged. Pure; the same on every stage.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/options.h"
#include "model/backbone.h"
#include "peft/bottleneck.h"
#include "peft/meft_streams.h"
#include "peft/method_config.h"

namespace espalier::peft {

/// Keys "peft.meft.*".
void describe(OptionTable& table, MeftConfig& config);

enum class MeftRole {
  kFrozen,      ///< plain, without gradient
  kReversible,  ///< between the streams; its graph is made again in the backward
  kCached,      ///< the same block, keeping its graph
  kJoint,  ///< an ordinary graph over "hidden": behind a stack, or below the streams where a weight of the task trains
};

enum class MeftMerge { kMean, kSum, kConcat };

struct MeftPlan {
  std::int64_t variant = 1;
  StreamScale lambda, beta;  ///< y1 = lambda x1 + F(x2), y2 = beta x2 + G(y1)
  // By index in the chain:
  std::vector<MeftRole> roles;
  std::vector<std::int64_t> heights;  ///< of adapted blocks: how many adapted ones of their stack lie below
  std::vector<MeftMerge> merges;      ///< of the last block of a stack with streams
  std::vector<bool> trains_before;    ///< what enters the layer as "hidden" or as streams needs a gradient
  bool memory_trains = false;         ///< so does the decoder's "memory"

  [[nodiscard]] MeftRole role(int layer) const { return roles[static_cast<std::size_t>(layer)]; }
  [[nodiscard]] bool is_adapted(int layer) const {
    return role(layer) == MeftRole::kReversible || role(layer) == MeftRole::kCached;
  }
  [[nodiscard]] bool has_streams_before(int layer) const { return layer > 0 && is_adapted(layer - 1); }
  [[nodiscard]] bool needs_gradient(int layer) const { return trains_before[static_cast<std::size_t>(layer)]; }
  /// The next block receives (y2, y1).
  [[nodiscard]] bool switches() const { return variant != 3; }
};

/// Inner width of the adapters: the option's, or as published 64 for decoder-only models and 8 for others.
std::int64_t meft_rank(const MeftConfig& config, const model::Backbone& backbone);

/// Throws: ConfigError naming the key that does not fit.
MeftPlan plan_meft(const MeftConfig& config, const model::Backbone& backbone);

/// As the option names it.
std::string merge_name(MeftMerge merge);

enum class MeftAdapter { kReversible, kFeedForward, kAttention };
/// The adapters of a block, in the order of trained().
std::vector<MeftAdapter> meft_adapters(const MeftPlan& plan);
/// One of these adapters, in `block`.
BottleneckSpec meft_bottleneck(const MeftConfig& config, const model::Backbone& backbone, const model::BlockSpec& block,
                               MeftAdapter adapter);

/// Trained scalars of adapters and merges. Throws: as plan_meft().
std::int64_t count_meft(const MeftConfig& config, const model::Backbone& backbone);

}  // namespace espalier::peft
