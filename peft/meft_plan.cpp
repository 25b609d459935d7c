// SPDX-License-Identifier: Apache-2.0
#include "peft/meft_plan.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

#include "common/error.h"

namespace espalier::peft {
namespace {

StreamScale read_scale(const MeftConfig& config, const char* key, double given, double published) {
  StreamScale scale{.value = given == 0 ? published : given};
  if (config.inversion != "exact") return scale;
  const double divisor = std::round(1 / scale.value);
  if (divisor < 1 || divisor > static_cast<double>(kMaxDivisor) || std::abs(scale.value * divisor - 1) > 1e-9) {
    throw ConfigError(
        fmt::format("peft.meft.{}: expected 1 / k with a whole k of 1 to {}, which the exact inversion divides by; "
                    "found {}; take such a one, or peft.meft.inversion = float",
                    key, kMaxDivisor, scale.value));
  }
  scale.divisor = static_cast<std::int64_t>(divisor);
  scale.value = 1 / divisor;
  return scale;
}

std::int64_t at_most(const char* key, std::int64_t found, std::int64_t limit, const char* what) {
  if (found > limit) {
    throw ConfigError(fmt::format("peft.meft.{}: expected at most {} ({}), found {}", key, limit, what, found));
  }
  return found;
}

/// Number of adapted blocks, from the bottom of the chain, that are reversible.
std::int64_t count_reversible(const MeftConfig& config, std::int64_t num_blocks) {
  at_most("frozen_bottom", config.frozen_bottom, num_blocks - 1, "one block less than the backbone has");
  const std::int64_t num_adapted = num_blocks - config.frozen_bottom;
  const char* what = "the blocks above peft.meft.frozen_bottom";
  if (config.reversible_layers >= 0 && config.cached_top > 0) {
    throw ConfigError(
        "peft.meft.cached_top: expected 0 beside peft.meft.reversible_layers, which says the same; give one of them");
  }
  if (config.reversible_layers < 0) return num_adapted - at_most("cached_top", config.cached_top, num_adapted, what);
  return at_most("reversible_layers", config.reversible_layers, num_adapted, what);
}

MeftMerge read_merge(const MeftConfig& config, const model::BlockSpec& block) {
  if (config.merge == "concat") return MeftMerge::kConcat;
  if (config.merge == "sum") return MeftMerge::kSum;
  if (config.merge == "mean") return MeftMerge::kMean;
  // As released: the mean for encoders, the sum for causal models.
  return block.is_causal ? MeftMerge::kSum : MeftMerge::kMean;
}

void check_variant(const MeftConfig& config, const model::Backbone& backbone) {
  if (config.variant != 3) return;
  for (const model::LayerPlan& layer : backbone.chain) {
    if (layer.block && layer.block->has_cross_attention) {
      throw ConfigError(fmt::format(
          "peft.meft.variant: expected 1 or 2 for a decoder with cross-attention, whose blocks have three parts "
          "({}), found 3, which couples two parts",
          layer.name));
    }
  }
  if (config.norm_in_adapter) {
    throw ConfigError(
        "peft.meft.norm_in_adapter: expected false with peft.meft.variant = 3, which has no adapter of its own between "
        "the streams");
  }
}

}  // namespace

void describe(OptionTable& table, MeftConfig& config) {
  table.add("peft.meft.variant", config.variant)
      .at_least(1)
      .at_most(3)
      .help(
          "MEFT1: the block makes the first stream, an adapter the second. MEFT2: the other way round. MEFT3: the "
          "attention makes the first, the feed-forward the second.");
  table.add("peft.meft.rank", config.rank)
      .at_least(0)
      .help("Inner width of the adapters. 0: 64 for decoder-only models, 8 for others.");
  table.add("peft.meft.lambda", config.lambda)
      .help("Multiplies the first stream; 0: the variant's own (0.1, 1, 0.1). 1 / k where the inversion is exact.");
  table.add("peft.meft.beta", config.beta)
      .help("Multiplies the second stream; 0: the variant's own (1, 0.1, 0.1). 1 / k where the inversion is exact.");
  table.add("peft.meft.reversible_layers", config.reversible_layers)
      .at_least(-1)
      .help(
          "Blocks above peft.meft.frozen_bottom, from the lowest, whose activations are recomputed; those above keep "
          "theirs. -1: all.");
  table.add("peft.meft.frozen_bottom", config.frozen_bottom)
      .at_least(0)
      .help("Lowest blocks of the chain that stay plain, without adapters, streams or gradient.");
  table.add("peft.meft.cached_top", config.cached_top)
      .at_least(0)
      .help("Highest blocks that keep their activations: more memory, no recomputing.");
  table.add("peft.meft.merge", config.merge)
      .choices({"auto", "mean", "sum", "concat"})
      .help(
          "What follows a stack reads of its streams. mean: (x1 + x2) / 2. sum: the newer state + 0.1 the older. "
          "concat: a trained map of both. auto: the sum behind causal blocks, else the mean.");
  table.add("peft.meft.norm_in_adapter", config.norm_in_adapter)
      .help("The adapter between the streams has a trained LayerNorm in front (MEFT1, MEFT2).");
  table.add("peft.meft.factors", config.factors)
      .choices({"none", "lora", "rosa"})
      .help(
          "Low-rank factors that train on linears inside the adapted blocks besides the adapters, with the options of "
          "their method.");
  table.add("peft.meft.pooler_trained", config.pooler_trained)
      .help("BERT's pooler, which belongs to the pretrained model, trains with the classifier behind it.");
  table.add("peft.meft.inversion", config.inversion)
      .choices({"exact", "float", "anchored"})
      .help(
          "How a block's input is made of its output. exact: fixed-point streams, no error on any layout. float: as "
          "published, an error that grows by 1 / lambda a block; one stage only. anchored: float, from streams kept "
          "every peft.meft.anchor_layers blocks; stages must begin there.");
  table.add("peft.meft.anchor_layers", config.anchor_layers)
      .at_least(1)
      .help("Blocks between two kept states of the anchored inversion, counted from the bottom of the stack.");
  table.add("peft.meft.fraction_bits", config.fraction_bits)
      .at_least(8)
      .at_most(28)
      .help(
          "Bits behind the point of fixed-point streams: values up to 2^(31 - bits) in steps of 2^-bits. Fewer for a "
          "backbone with outliers.");
  table.add("peft.meft.error_limit", config.error_limit)
      .above(0)
      .help(
          "Relative error of the inverted streams, measured now and then from the first step on, above which a float "
          "inversion stops.");
}

std::int64_t meft_rank(const MeftConfig& config, const model::Backbone& backbone) {
  if (config.rank > 0) return config.rank;
  const auto block = std::find_if(backbone.chain.begin(), backbone.chain.end(),
                                  [](const model::LayerPlan& layer) { return layer.block.has_value(); });
  const bool is_decoder_only = block != backbone.chain.end() && block->block->is_causal;
  return is_decoder_only ? 64 : 8;
}

MeftPlan plan_meft(const MeftConfig& config, const model::Backbone& backbone) {
  check_variant(config, backbone);
  MeftPlan plan;
  plan.variant = config.variant;
  plan.lambda = read_scale(config, "lambda", config.lambda, config.variant == 2 ? 1 : 0.1);
  plan.beta = read_scale(config, "beta", config.beta, config.variant == 1 ? 1 : 0.1);
  const std::int64_t num_reversible = count_reversible(config, backbone.num_blocks());

  std::int64_t num_blocks = 0, height = 0;
  bool trains = false;  // something below, in this stack
  for (const model::LayerPlan& layer : backbone.chain) {
    const bool begins_decoder = layer.embedding && layer.stack == model::Stack::kDecoder;
    MeftRole role = trains || layer.head ? MeftRole::kJoint : MeftRole::kFrozen;
    plan.trains_before.push_back(trains);
    plan.heights.push_back(0);
    plan.merges.push_back(MeftMerge::kMean);
    if (begins_decoder) {
      plan.memory_trains = trains;
      trains = false;
      height = 0;
    } else if (layer.embedding && layer.embedding->visual) {
      role = MeftRole::kJoint;
      trains = true;
    } else if (layer.kind == model::LayerKind::kBlock) {
      const std::int64_t number = num_blocks++ - config.frozen_bottom;
      const bool reads_trained = layer.stack == model::Stack::kDecoder && plan.memory_trains;
      if (number >= 0) {
        role = number < num_reversible ? MeftRole::kReversible : MeftRole::kCached;
        plan.heights.back() = height++;
        plan.merges.back() = read_merge(config, *layer.block);
      } else if (reads_trained) {
        role = MeftRole::kJoint;
      }
      trains = trains || number >= 0 || reads_trained;
    }
    plan.roles.push_back(role);
  }
  return plan;
}

std::string merge_name(MeftMerge merge) {
  return merge == MeftMerge::kMean ? "mean" : merge == MeftMerge::kSum ? "sum" : "concat";
}

std::vector<MeftAdapter> meft_adapters(const MeftPlan& plan) {
  if (plan.variant == 3) return {MeftAdapter::kAttention, MeftAdapter::kFeedForward};
  if (plan.variant == 2) return {MeftAdapter::kReversible, MeftAdapter::kFeedForward};
  return {MeftAdapter::kFeedForward, MeftAdapter::kReversible};
}

BottleneckSpec meft_bottleneck(const MeftConfig& config, const model::Backbone& backbone, const model::BlockSpec& block,
                               MeftAdapter adapter) {
  return {.width = block.width,
          .rank = meft_rank(config, backbone),
          .activation = block.activation,
          .dropout = block.hidden_dropout,
          .has_norm = config.norm_in_adapter && adapter == MeftAdapter::kReversible,
          // Behind the attention it replaces the branch's output o by o + A(o).
          .has_residual = adapter == MeftAdapter::kAttention,
          .down_deviation = backbone.initializer_range,
          .up_deviation = backbone.initializer_range};
}

std::int64_t count_meft(const MeftConfig& config, const model::Backbone& backbone) {
  const MeftPlan plan = plan_meft(config, backbone);
  std::int64_t count = 0;
  for (int layer = 0; layer < backbone.num_layers(); ++layer) {
    const model::LayerPlan& place = backbone.layer(layer);
    if (plan.is_adapted(layer)) {
      for (const MeftAdapter adapter : meft_adapters(plan)) {
        count += count_bottleneck(meft_bottleneck(config, backbone, *place.block, adapter));
      }
    } else if (plan.has_streams_before(layer)) {
      const auto merge = plan.merges[static_cast<std::size_t>(layer) - 1];
      count += merge == MeftMerge::kConcat ? 2 * backbone.width * backbone.width : 0;
    }
  }
  return count;
}

}  // namespace espalier::peft
