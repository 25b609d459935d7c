// SPDX-License-Identifier: Apache-2.0
// B batch, T query tokens, S key tokens, D width, H heads, G key/value heads, W head width
#include "model/block.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <cmath>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "model/attention.h"
#include "model/attention_cache.h"
#include "model/dropout.h"

namespace espalier::model {

namespace {

// Of networks that run together every state has one dimension more in front, [K, ...].

/// [B, S, G*W] -> [B, G, S, W], a view.
at::Tensor split_heads(const at::Tensor& x, std::int64_t num_heads, std::int64_t head_width) {
  return x.unflatten(-1, {num_heads, head_width}).transpose(-3, -2);
}

/// [B, G, S, W] -> [B, H, S, W], each shared head for its H / G queries.
at::Tensor repeat_heads(const at::Tensor& x, std::int64_t num_heads) {
  if (x.size(-3) == num_heads) return x;
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(x.dim()) + 1, -1);
  sizes[sizes.size() - 3] = num_heads / x.size(-3);
  return x.unsqueeze(-3).expand(sizes).flatten(-4, -3);
}

/// x [B, H, T, W] turned by the angles whose cosine and sine are given.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  return x * cos + at::cat({-halves[1], halves[0]}, -1) * sin;
}

/// [T, S] of bucket numbers for the last T of S tokens: exact for near keys, logarithmic up to max_distance.
at::Tensor relative_buckets(const RelativeBiasSpec& spec, std::int64_t num_queries, std::int64_t num_keys,
                            at::Device device) {
  const auto positions = at::arange(num_keys, at::TensorOptions().dtype(at::kLong).device(device));
  const auto queries = positions.narrow(0, num_keys - num_queries, num_queries);
  auto distance = positions.unsqueeze(0) - queries.unsqueeze(1);  // key - query
  auto num_buckets = spec.num_buckets;
  auto bucket = at::zeros_like(distance);
  if (spec.is_bidirectional) {
    num_buckets /= 2;
    bucket = distance.gt(0).to(at::kLong) * num_buckets;
    distance = distance.abs();
  } else {
    distance = (-distance).clamp_min(0);
  }
  const auto num_exact = num_buckets / 2;
  const auto scale = static_cast<double>(num_buckets - num_exact) /
                     std::log(static_cast<double>(spec.max_distance) / static_cast<double>(num_exact));
  const auto far = (at::log(distance.clamp_min(1).to(at::kFloat) / static_cast<double>(num_exact)) * scale)
                       .to(at::kLong)
                       .add(num_exact)
                       .clamp_max(num_buckets - 1);
  return bucket + at::where(distance.lt(num_exact), distance, far);
}

}  // namespace

Activation activation_from(const std::string& hugging_face_name) {
  static const std::map<std::string, Activation> known = {
      {"gelu", Activation::kGelu},          {"gelu_python", Activation::kGelu},
      {"gelu_new", Activation::kGeluTanh},  {"gelu_pytorch_tanh", Activation::kGeluTanh},
      {"gelu_fast", Activation::kGeluTanh}, {"quick_gelu", Activation::kQuickGelu},
      {"relu", Activation::kRelu},          {"silu", Activation::kSilu},
      {"swish", Activation::kSilu},
  };
  const auto found = known.find(hugging_face_name);
  if (found != known.end()) return found->second;
  std::string names;
  for (const auto& [name, activation] : known) names += (names.empty() ? "" : ", ") + name;
  throw ConfigError(fmt::format("activation: expected one of {}; found \"{}\"", names, hugging_face_name));
}

at::Tensor activate(const at::Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      return at::gelu(x, "none");
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kQuickGelu:
      return x * at::sigmoid(1.702 * x);
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kSilu:
      return at::silu(x);
  }
  throw InternalError("activate: unknown activation");
}

TransformerBlock::TransformerBlock(BlockSpec spec, LayerPlace place) : spec_(std::move(spec)), place_(place) {
  const auto make_norm = [this] { return Norm{spec_.norm_kind, spec_.norm_epsilon, spec_.width, {}, {}}; };
  const auto make_attention = [&] {
    const auto inner = spec_.num_heads * spec_.head_width;
    const auto shared_inner = spec_.num_key_value_heads * spec_.head_width;
    const bool has_bias = spec_.has_attention_bias;
    return AttentionWeights{Linear(spec_.width, inner, has_bias), Linear(spec_.width, shared_inner, has_bias),
                            Linear(spec_.width, shared_inner, has_bias),
                            Linear(inner, spec_.width, spec_.has_output_bias), make_norm()};
  };
  attention_ = make_attention();
  if (spec_.has_cross_attention) cross_attention_ = std::make_unique<AttentionWeights>(make_attention());
  up_ = Linear(spec_.width, spec_.feed_forward_width, spec_.has_feed_forward_bias);
  if (spec_.is_gated) gate_ = Linear(spec_.width, spec_.feed_forward_width, spec_.has_feed_forward_bias);
  down_ = Linear(spec_.feed_forward_width, spec_.width, spec_.has_feed_forward_bias);
  feed_forward_norm_ = make_norm();
}

at::Tensor TransformerBlock::forward(const at::Tensor& x, const BlockInputs& inputs,
                                     const ForwardContext& context) const {
  return feed_forward_part(attention_part(x, inputs, context), context);
}

at::Tensor TransformerBlock::attention_part(const at::Tensor& x, const BlockInputs& inputs,
                                            const ForwardContext& context) const {
  const auto self_branch = [&](const at::Tensor& normed) {
    const ScoreBias bias{spec_.has_position_bias ? inputs.position_bias : at::Tensor(), inputs.attention_bias,
                         spec_.is_causal};
    return attend(attention_, normed, normed, bias, &inputs, DropoutSite::kAttentionWeights, context);
  };
  auto y = add_branch(x, attention_.norm, self_branch, find_insert(InsertPlace::kAfterAttention),
                      {DropoutSite::kAttentionOutput, DropoutSite::kAttentionPath}, context);
  if (!cross_attention_) return y;
  const auto cross_branch = [&](const at::Tensor& normed) {
    return attend(*cross_attention_, normed, inputs.memory, {{}, inputs.memory_bias}, /*rotary=*/nullptr,
                  DropoutSite::kCrossAttentionWeights, context);
  };
  return add_branch(y, cross_attention_->norm, cross_branch, find_insert(InsertPlace::kAfterCrossAttention),
                    {DropoutSite::kCrossAttentionOutput, DropoutSite::kCrossAttentionPath}, context);
}

at::Tensor TransformerBlock::feed_forward_part(const at::Tensor& x, const ForwardContext& context) const {
  const auto* parallel = find_insert(InsertPlace::kParallelToFeedForward);
  at::Tensor beside;
  const auto branch = [&](const at::Tensor& normed) {
    if (parallel) beside = parallel->forward(normed, context);
    auto inner = spec_.is_gated
                     ? activate(gate_.forward(normed, context), spec_.activation) * up_.forward(normed, context)
                     : activate(up_.forward(normed, context), spec_.activation);
    if (context.is_training && spec_.activation_dropout > 0) {
      inner = dropout(inner, spec_.activation_dropout, context, place_, DropoutSite::kFeedForwardInner);
    }
    return down_.forward(inner, context);
  };
  return add_branch(x, feed_forward_norm_, branch, find_insert(InsertPlace::kAfterFeedForward),
                    {DropoutSite::kFeedForwardOutput, DropoutSite::kFeedForwardPath}, context, &beside);
}

at::Tensor TransformerBlock::add_branch(const at::Tensor& x, const Norm& norm,
                                        const std::function<at::Tensor(const at::Tensor&)>& branch,
                                        const Insert* insert, BranchSites sites, const ForwardContext& context,
                                        const at::Tensor* beside) const {
  const bool is_pre_norm = spec_.norm_place == NormPlace::kBefore;
  const auto output = branch(is_pre_norm ? norm.forward(x) : x);
  const double probability = context.is_training ? spec_.hidden_dropout : 0;
  const bool drops_path = context.is_training && spec_.drop_path > 0;
  at::Tensor sum;
  if (insert || drops_path) {
    at::Tensor added = dropout(output, probability, context, place_, sites.output);
    if (insert) added = insert->forward(added, context);
    if (drops_path) {
      const at::Tensor rows = at::ones({x.size(0), 1, 1}, x.options());
      added = added * dropout(rows, spec_.drop_path, context, place_, sites.path);
    }
    sum = x + added;
  } else {
    sum = dropout_add(output, x, probability, context, place_, sites.output);
  }
  if (beside && beside->defined()) sum = sum + *beside;
  return is_pre_norm ? sum : norm.forward(sum);
}

at::Tensor TransformerBlock::attend(const AttentionWeights& weights, const at::Tensor& x, const at::Tensor& memory,
                                    const ScoreBias& bias, const BlockInputs* rotary, DropoutSite site,
                                    const ForwardContext& context) const {
  const bool is_memory = &weights == cross_attention_.get();
  auto q = split_heads(weights.query.forward(x, context), spec_.num_heads, spec_.head_width);  // [B, H, T, W]
  if (rotary && rotary->rotary_cos.defined()) q = rotate(q, rotary->rotary_cos, rotary->rotary_sin);
  const auto [shared_k, shared_v] = keys_and_values(weights, memory, rotary, is_memory, context);
  const auto k = repeat_heads(shared_k, spec_.num_heads);  // [B, H, S, W]
  const auto v = repeat_heads(shared_v, spec_.num_heads);  // [B, H, S, W]
  AttentionOptions options;
  options.scale =
      spec_.attention_scale != 0 ? spec_.attention_scale : 1.0 / std::sqrt(static_cast<double>(spec_.head_width));
  // One new token sees all that are cached.
  options.is_causal = bias.is_causal && q.size(-2) == k.size(-2);
  ESPALIER_CHECK(!bias.is_causal || options.is_causal || q.size(-2) == 1, "a cache goes on by one token at a time");
  options.key_bias = bias.keys;
  options.dropout = context.is_training ? spec_.attention_dropout : 0;
  const auto attend_to = spec_.keeps_scores ? attention_reference : attention;
  const auto keys = dropout_keys(context, place_, site);
  const auto mix = [&](const at::Tensor& own_q, const at::Tensor& own_k, const at::Tensor& own_v,
                       const at::Tensor& position, std::uint64_t key) {
    options.dropout_key = key;
    return attend_to(own_q, own_k, own_v, position, options).transpose(1, 2).flatten(2);  // [B, T, H*W]
  };
  if (q.dim() == 4) return weights.output.forward(mix(q, k, v, bias.position, keys.front()), context);
  const auto qs = q.unbind(0), ks = k.unbind(0), vs = v.unbind(0);
  const bool has_own_bias = bias.position.defined() && bias.position.dim() == 5;
  const auto positions = has_own_bias ? bias.position.unbind(0) : std::vector<at::Tensor>(qs.size(), bias.position);
  std::vector<at::Tensor> mixed;
  for (std::size_t n = 0; n < qs.size(); ++n) {
    mixed.push_back(mix(qs[n], ks[n], vs[n], positions[n], keys[n]));
  }
  return weights.output.forward(at::stack(mixed), context);
}

std::pair<at::Tensor, at::Tensor> TransformerBlock::keys_and_values(const AttentionWeights& weights,
                                                                    const at::Tensor& source, const BlockInputs* rotary,
                                                                    bool is_memory,
                                                                    const ForwardContext& context) const {
  const auto make = [&]() -> std::pair<at::Tensor, at::Tensor> {
    auto k = split_heads(weights.key.forward(source, context), spec_.num_key_value_heads, spec_.head_width);
    auto v = split_heads(weights.value.forward(source, context), spec_.num_key_value_heads, spec_.head_width);
    if (rotary && rotary->rotary_cos.defined()) k = rotate(k, rotary->rotary_cos, rotary->rotary_sin);
    return {std::move(k), std::move(v)};
  };
  if (context.cache && is_memory) return context.cache->memory(place_, make);
  // Only a causal stack goes on token by token; an encoder runs once.
  if (context.cache && spec_.is_causal) return context.cache->extend(place_, make());
  return make();
}

at::Tensor TransformerBlock::relative_position_bias(std::int64_t num_tokens, std::int64_t num_cached) const {
  const auto buckets =
      relative_buckets(spec_.relative_bias.value(), num_tokens, num_cached + num_tokens, relative_bias_.device());
  const auto biases_of = [&](const at::Tensor& table) {  // [1, H, T, S]
    return at::embedding(table.to(at::kFloat), buckets).permute({2, 0, 1}).unsqueeze(0).contiguous();
  };
  if (relative_bias_.dim() == 2) return biases_of(relative_bias_);
  std::vector<at::Tensor> of_networks;
  for (const auto& table : relative_bias_.unbind(0)) of_networks.push_back(biases_of(table));
  return at::stack(of_networks);
}

const Insert* TransformerBlock::find_insert(InsertPlace place) const {
  const auto found = inserts_.find(place);
  return found == inserts_.end() ? nullptr : found->second.get();
}

void TransformerBlock::visit_weights(const WeightVisitor& visit) {
  visit_linears([&](const std::string& role, Linear& linear) { model::visit_weights(role, linear, visit); });
  model::visit_weights("attention.norm", attention_.norm, visit);
  if (cross_attention_) model::visit_weights("cross_attention.norm", cross_attention_->norm, visit);
  model::visit_weights("feed_forward.norm", feed_forward_norm_, visit);
  if (spec_.relative_bias) {
    visit("attention.relative_bias.weight", relative_bias_, {spec_.relative_bias->num_buckets, spec_.num_heads});
  }
}

void TransformerBlock::visit_linears(const std::function<void(const std::string& role, Linear& linear)>& visit) {
  const auto visit_attention = [&](const std::string& role, AttentionWeights& weights) {
    visit(role + ".query", weights.query);
    visit(role + ".key", weights.key);
    visit(role + ".value", weights.value);
    visit(role + ".output", weights.output);
  };
  visit_attention("attention", attention_);
  if (cross_attention_) visit_attention("cross_attention", *cross_attention_);
  visit("feed_forward.up", up_);
  if (spec_.is_gated) visit("feed_forward.gate", gate_);
  visit("feed_forward.down", down_);
}

void TransformerBlock::set_insert(InsertPlace place, std::shared_ptr<const Insert> insert) {
  inserts_[place] = std::move(insert);
}

}  // namespace espalier::model
