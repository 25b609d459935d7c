// SPDX-License-Identifier: Apache-2.0
#include "peft/last.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/error.h"
#include "model/attention.h"
#include "model/initial.h"
#include "peft/normed_linear.h"
#include "peft/trained_set.h"

namespace espalier::peft {
namespace {

void check_last(const LastConfig& config, const model::Backbone& backbone) {
  if (backbone.is_encoder_decoder()) {
    throw ConfigError(
        "peft.method=last: expected a backbone of one stack (ViT, BERT, RoBERTa, OPT, GPT-2, Llama), found an encoder "
        "and a decoder; choose another method");
  }
  if (config.rank % config.heads != 0) {
    throw ConfigError(
        fmt::format("peft.last.heads: expected a divisor of peft.last.rank = {}, found {}", config.rank, config.heads));
  }
  if (config.rank > backbone.width) {
    throw ConfigError(fmt::format("peft.last.rank: expected at most {} (the width of the backbone), found {}",
                                  backbone.width, config.rank));
  }
  if (backbone.num_blocks() % config.group_size != 0) {
    throw ConfigError(fmt::format("peft.last.group_size: expected a divisor of the backbone's {} blocks, found {}",
                                  backbone.num_blocks(), config.group_size));
  }
}

/// [B, T, R] -> [B, H, T, R / H]; of K networks [K, B, T, R] -> [K * B, H, T, R / H]
at::Tensor split_heads(const at::Tensor& x, std::int64_t num_heads) {
  return x.flatten(0, -3).unflatten(-1, {num_heads, -1}).transpose(1, 2);
}

}  // namespace

void describe(OptionTable& table, LastConfig& config) {
  table.add("peft.last.rank", config.rank)
      .at_least(1)
      .help("Width at which a module attends. Trained scalars grow with it.");
  table.add("peft.last.group_size", config.group_size)
      .at_least(1)
      .unit("blocks")
      .help("Blocks of the backbone between two groups of modules. Must divide their number.");
  table.add("peft.last.modules_per_group", config.modules_per_group)
      .at_least(1)
      .help("Attention modules in sequence behind each group of blocks.");
  table.add("peft.last.heads", config.heads).at_least(1).help("Heads of a module. Must divide the rank.");
  table.add("peft.last.norm_affine", config.norm_affine).help("The norm of a module has a trained weight and bias.");
  table.add("peft.last.up_bias", config.up_bias).help("The up-projection of a module has a bias.");
  table.add("peft.last.qkv_bias", config.qkv_bias).help("Query, key and value of a module have biases.");
  table.add("peft.last.correction", config.correction)
      .help(
          "Subtract the backbone's accumulated states in the end, so that the head reads its last state and the "
          "updates "
          "alone. Off: for comparison.");
  table.add("peft.last.up_deviation", config.up_deviation)
      .at_least(0)
      .help("Deviation of the up-projections' start. 0: training starts at the frozen backbone exactly.");
}

std::int64_t count_last(const LastConfig& config, const model::Backbone& backbone) {
  check_last(config, backbone);
  const std::int64_t width = backbone.width;
  const std::int64_t module = 4 * width * config.rank + (config.norm_affine ? 2 * width : 0) +
                              (config.up_bias ? width : 0) + (config.qkv_bias ? 3 * config.rank : 0);
  return backbone.num_blocks() / config.group_size * config.modules_per_group * module;
}

LastNetwork::LastNetwork(const LastConfig& config, model::StageSlice& slice, const model::WeightSource& weights,
                         std::uint64_t seed)
    : config_(config),
      slice_(slice),
      // Which states are added depends on the groups alone.
      sum_name_(fmt::format("{}sum.{}", kSharedPrefix, config.group_size)) {
  const model::Backbone& backbone = slice_.backbone();
  check_last(config_, backbone);
  const auto is_block = [](const model::LayerPlan& layer) { return layer.kind == model::LayerKind::kBlock; };
  first_block_ = static_cast<int>(std::find_if(backbone.chain.begin(), backbone.chain.end(), is_block)->index);
  last_block_ = first_block_ + backbone.num_blocks() - 1;
  for (const auto& layer : slice_.layers()) {
    const model::LayerPlan& plan = layer->plan();
    std::vector<Module> modules;
    if (plan.block && (plan.number + 1) % config_.group_size == 0) {
      for (std::int64_t number = 0; number < config_.modules_per_group; ++number) {
        modules.push_back(add_module(plan, number, seed));
      }
    }
    modules_.push_back(std::move(modules));
  }
  train_task_weights(slice_, *slice_.layers().back(), weights, trained_);
}

at::Tensor LastNetwork::add(const std::string& name, const at::Tensor& value) {
  trained_.push_back(make_trained(name, value, slice_.options().device));
  return trained_.back().value;
}

LastNetwork::Module LastNetwork::add_module(const model::LayerPlan& block, std::int64_t number, std::uint64_t seed) {
  const std::string name = fmt::format("last.{}.module.{}", block.name, number);
  const std::int64_t width = slice_.backbone().width, rank = config_.rank;
  Module module;
  module.norm = {model::NormKind::kLayerNorm, block.block->norm_epsilon, width, {}, {}};
  if (config_.norm_affine) {
    module.norm.weight = add(name + ".norm.weight", at::ones({width}));
    module.norm.bias = add(name + ".norm.bias", at::zeros({width}));
  }
  // Xavier-uniform for each of query, key and value.
  const double bound = std::sqrt(6.0 / static_cast<double>(width + rank));
  module.qkv = model::Linear(width, 3 * rank, config_.qkv_bias);
  module.qkv.weight =
      add(name + ".qkv.weight", model::uniform_by_name({3 * rank, width}, bound, seed, name + ".qkv.weight"));
  if (config_.qkv_bias) {
    module.qkv.bias = add(name + ".qkv.bias", at::zeros({3 * rank}));
  }
  module.up = model::Linear(rank, width, config_.up_bias);
  module.up.weight = add(name + ".up.weight",
                         config_.up_deviation == 0
                             ? at::zeros({width, rank})
                             : model::normal_by_name({width, rank}, config_.up_deviation, seed, name + ".up.weight"));
  if (config_.up_bias) {
    module.up.bias = add(name + ".up.bias", at::zeros({width}));
  }
  // A place of its own for each module: the chain is continued once for each.
  const auto length = static_cast<std::uint64_t>(slice_.backbone().num_layers());
  module.place = {RandomDomain::kSide, block.index + static_cast<std::uint64_t>(number) * length};
  return module;
}

at::ScalarType LastNetwork::side_type() const {
  // Sums of many states cancel in less than fp32.
  return at::promote_types(slice_.options().compute_type, at::kFloat);
}

model::CarryPlan LastNetwork::plan_carry(int first_layer, const model::BatchShape& shape) const {
  const std::vector<std::int64_t> sizes = {shape.rows, shape.tokens, slice_.backbone().width};
  model::CarryPlan plan;
  if (first_layer - first_block_ >= config_.group_size) {
    plan.push_back({.name = "delta", .sizes = sizes, .dtype = side_type(), .needs_gradient = true});
  }
  plan.push_back({.name = sum_name_, .sizes = sizes, .dtype = side_type()});
  return plan;
}

void LastNetwork::visit_weights(const std::function<void(at::Tensor& slot)>& visit) {
  for (std::vector<Module>& group : modules_) {
    for (Module& module : group) {
      for (at::Tensor* slot : {&module.norm.weight, &module.norm.bias, &module.qkv.weight, &module.qkv.bias,
                               &module.up.weight, &module.up.bias}) {
        if (slot->defined()) {
          visit(*slot);
        }
      }
    }
  }
}

model::StageInputs LastNetwork::adapt(const model::StageInputs& inputs) const {
  model::StageInputs side = inputs;
  if (side.attention_bias.defined()) {
    side.attention_bias = side.attention_bias.to(side_type());
  }
  return side;
}

void LastNetwork::climb(std::size_t place, const Tap& tap, const model::StageInputs& inputs,
                        const model::ForwardContext& context, model::Carry& side) const {
  const model::LayerPlan& plan = tap.layer.plan();
  if (plan.kind == model::LayerKind::kFinal) {
    tap.layer.forward(side, inputs, context);  // the backbone's own, frozen, on the corrected state
    return;
  }
  if (tap.undropped.defined()) {
    side[sum_name_] = tap.backbone.at("hidden").to(side_type());
    return;
  }
  const std::vector<Module>& modules = modules_[place];
  if (modules.empty()) {
    return;
  }
  const at::Tensor state = tap.backbone.at("hidden").to(side_type());  // [B, T, D]
  // The sum has no gradient, and the updates are kept apart from it, so that nothing large is ever subtracted.
  const at::Tensor sum = side.at(sum_name_) + state;
  at::Tensor delta = side["delta"];
  StateRecipe recipe;  // the state that the group's first module reads is kept for all of them
  for (const Module& module : modules) {
    const at::Tensor x = delta.defined() ? sum + delta : sum;
    if (!recipe.base.defined()) recipe.base = x;
    const at::Tensor mixed = mix(module, x, recipe, *plan.block, inputs, context);  // [B, T, R]
    const at::Tensor added = module.up.forward(mixed, context);
    recipe.terms.push_back({mixed, module.up.weight, module.up.bias});
    delta = delta.defined() ? delta + added : added;
  }
  if (static_cast<int>(plan.index) < last_block_) {
    side[sum_name_] = sum;
    side["delta"] = delta;
  } else {
    side = {{"hidden", (config_.correction ? state : sum) + delta}};
  }
}

at::Tensor LastNetwork::mix(const Module& module, const at::Tensor& x, const StateRecipe& recipe,
                            const model::BlockSpec& spec, const model::StageInputs& inputs,
                            const model::ForwardContext& context) const {
  const auto parts = normed_linear(x, recipe, module.norm, module.qkv).chunk(3, -1);  // [B, T, R]
  const at::Tensor q = split_heads(parts[0], config_.heads);
  std::pair<at::Tensor, at::Tensor> keys_values = {split_heads(parts[1], config_.heads),
                                                   split_heads(parts[2], config_.heads)};
  if (context.cache != nullptr && spec.is_causal) {
    keys_values = context.cache->extend(module.place, keys_values);
  }
  model::AttentionOptions options;
  options.scale = 1 / std::sqrt(static_cast<double>(q.size(3)));
  options.is_causal = spec.is_causal && q.size(2) == keys_values.first.size(2);
  options.key_bias = inputs.attention_bias;
  if (options.key_bias.defined()) {
    options.key_bias = options.key_bias.repeat({q.size(0) / options.key_bias.size(0), 1, 1, 1});
  }
  const at::Tensor mixed =
      model::attention(q, keys_values.first, keys_values.second, {}, options).transpose(1, 2).flatten(2);
  return mixed.view(parts[0].sizes());
}

at::Tensor LastNetwork::read_out(const model::Layer& head, const Tap& /*tap*/, const model::StageInputs& inputs,
                                 const model::ForwardContext& context, const model::Carry& side) const {
  const at::Tensor& state = side.at("hidden");
  const bool is_language_model = head.plan().head->is_language_model;
  model::Carry carry{{"hidden", is_language_model ? state.to(slice_.options().compute_type) : state}};
  head.forward(carry, inputs, context);
  return carry.at("logits");
}

nlohmann::json LastNetwork::describe_export() const {
  return {{"rank", config_.rank},
          {"group_size", config_.group_size},
          {"modules_per_group", config_.modules_per_group},
          {"heads", config_.heads},
          {"correction", config_.correction}};
}

}  // namespace espalier::peft
