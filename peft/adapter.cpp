// SPDX-License-Identifier: Apache-2.0
#include "peft/adapter.h"

#include <c10/util/accumulate.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/error.h"
#include "peft/linear_targets.h"
#include "peft/trained_set.h"

namespace espalier::peft {
namespace {

/// Where a block gets a bottleneck, and the last word of its name.
struct Place {
  model::InsertPlace place;
  const char* name;
};

/// In the order of their dropout sites: the optional place comes last, so that it moves no other's.
std::vector<Place> places_of(const AdapterConfig& config, const model::BlockSpec& spec) {
  if (config.placement == "parallel") return {{model::InsertPlace::kParallelToFeedForward, "parallel"}};
  std::vector<Place> places = {{model::InsertPlace::kAfterAttention, "after_attention"},
                               {model::InsertPlace::kAfterFeedForward, "after_feed_forward"}};
  if (config.cross_attention && spec.has_cross_attention) {
    places.push_back({model::InsertPlace::kAfterCrossAttention, "after_cross_attention"});
  }
  return places;
}

void check_places(const AdapterConfig& config, const model::Backbone& backbone) {
  if (!config.cross_attention) return;
  if (config.placement != "houlsby") {
    throw ConfigError(
        fmt::format("peft.adapter.cross_attention: expected peft.adapter.placement=houlsby, which stands behind "
                    "attentions, found {}; leave one of the two out",
                    config.placement));
  }
  const bool has_any = std::any_of(backbone.chain.begin(), backbone.chain.end(), [](const model::LayerPlan& layer) {
    return layer.block && layer.block->has_cross_attention;
  });
  if (!has_any) {
    throw ConfigError(
        fmt::format("peft.adapter.cross_attention: expected false for a backbone without cross-attention ({}), found "
                    "true; T5 and BART have it",
                    backbone.family->model_type()));
  }
}

bool is_norm_of_block(const std::string& role) {
  return role.find("norm.") != std::string::npos;
}

}  // namespace

void describe(OptionTable& table, AdapterConfig& config) {
  table.add("peft.adapter.placement", config.placement)
      .choices({"houlsby", "parallel"})
      .help(
          "houlsby: behind the self-attention and behind the feed-forward of every block. parallel: beside the "
          "feed-forward.");
  table.add("peft.adapter.cross_attention", config.cross_attention)
      .help("With placement houlsby: behind the cross-attention of a decoder's blocks too.");
  table.add("peft.adapter.rank", config.rank)
      .at_least(1)
      .help("Width of the bottleneck. Trained scalars grow with it.");
  table.add("peft.adapter.activation", config.activation)
      .help("model: the backbone's own; or gelu, gelu_new, quick_gelu, relu, silu.");
  table.add("peft.adapter.dropout", config.dropout)
      .at_least(0)
      .below(1)
      .help("Dropout inside the bottleneck, behind the activation.");
  table.add("peft.adapter.scale", config.scale)
      .above(0)
      .help("Multiplies what a parallel bottleneck adds; 4 in He et al. (2022). 1 with placement houlsby.");
  table.add("peft.adapter.norms_trained", config.norms_trained)
      .help("The norms of the blocks train too, as in Houlsby et al.");
}

BottleneckSpec plan_adapter(const AdapterConfig& config, const model::BlockSpec& spec) {
  if (config.rank > spec.width) {
    throw ConfigError(fmt::format("peft.adapter.rank: expected at most {} (the backbone's width), found {}; lower it",
                                  spec.width, config.rank));
  }
  if (config.placement == "houlsby" && config.scale != 1) {
    throw ConfigError(
        fmt::format("peft.adapter.scale: expected 1 with peft.adapter.placement=houlsby, found {}; parallel adapters "
                    "are scaled",
                    config.scale));
  }
  BottleneckSpec bottleneck{.width = spec.width, .rank = config.rank, .dropout = config.dropout, .scale = config.scale};
  try {
    bottleneck.activation = config.activation == "model" ? spec.activation : model::activation_from(config.activation);
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("peft.adapter.activation: expected 'model' or a name; {}", error.what()));
  }
  if (config.placement == "houlsby") {
    // Near the identity: both matrices small, none of their elements large (Houlsby et al., section 3.6).
    bottleneck.has_residual = true;
    bottleneck.start = BottleneckSpec::Start::kTruncatedNormal;
    bottleneck.down_deviation = bottleneck.up_deviation = 0.01;
  } else {
    // As LoRA starts: the lower matrix uniform of variance 1 / (3 D), the upper one zero (He et al., 2022).
    bottleneck.start = BottleneckSpec::Start::kUniform;
    bottleneck.down_deviation = 1.0 / std::sqrt(3.0 * static_cast<double>(spec.width));
    bottleneck.up_deviation = 0;
  }
  return bottleneck;
}

std::int64_t count_adapter(const AdapterConfig& config, const model::Backbone& backbone) {
  check_places(config, backbone);
  std::int64_t count = 0;
  for (const model::LayerPlan& layer : backbone.chain) {
    if (layer.block) {
      const auto num_places = static_cast<std::int64_t>(places_of(config, *layer.block).size());
      count += num_places * count_bottleneck(plan_adapter(config, *layer.block));
    }
  }
  if (config.norms_trained) {
    model::visit_planned_weights(
        backbone, [&](const model::LayerPlan& layer, const std::string& role, const std::vector<std::int64_t>& shape) {
          count += layer.block && is_norm_of_block(role) ? c10::multiply_integers(shape) : 0;
        });
  }
  return count;
}

AdapterMethod::AdapterMethod(const AdapterConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
                             std::uint64_t seed)
    : ChainMethod(slice, {.first_trained_layer = first_trained_by_blocks(slice.backbone())}), config_(config) {
  check_places(config_, slice.backbone());
  for (const auto& layer : slice.layers()) {
    const model::LayerPlan& plan = layer->plan();
    if (model::TransformerBlock* block = layer->block()) {
      auto site = static_cast<std::uint32_t>(model::DropoutSite::kFactor);
      for (const Place& place : places_of(config_, block->spec())) {
        auto bottleneck = std::make_shared<Bottleneck>(plan_adapter(config_, block->spec()),
                                                       model::LayerPlace{RandomDomain::kAdapter, plan.index},
                                                       static_cast<model::DropoutSite>(site++));
        train_bottleneck(*bottleneck, plan.name + ".adapter." + place.name, seed, slice.options().device, trained());
        block->set_insert(place.place, std::move(bottleneck));
      }
      if (config_.norms_trained) {
        const auto is_norm = [](const std::string& role, const auto& /*shape*/) { return is_norm_of_block(role); };
        train_chosen(slice, *layer, weights, is_norm, trained());
      }
    }
    train_task_weights(slice, *layer, weights, trained());
  }
}

nlohmann::json AdapterMethod::describe_export() const {
  return {{"placement", config_.placement},
          {"cross_attention", config_.cross_attention},
          {"rank", config_.rank},
          {"activation", config_.activation},
          {"dropout", config_.dropout},
          {"scale", config_.scale},
          {"norms_trained", config_.norms_trained}};
}

}  // namespace espalier::peft
