// SPDX-License-Identifier: Apache-2.0
// The block against the same equations written out with small operations. B = 2, T = 5 tokens, S = 4 tokens of memory.
#include "model/block.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "common/error.h"
#include "model/dropout.h"
#include "model/initial.h"

namespace espalier::model {
namespace {

using Weights = std::map<std::string, at::Tensor>;

BlockSpec small_spec() {
  BlockSpec spec;
  spec.width = 12;
  spec.num_heads = spec.num_key_value_heads = 3;
  spec.head_width = 4;
  spec.feed_forward_width = 20;
  return spec;
}

at::Tensor drawn(at::IntArrayRef shape, std::string_view name) {
  return normal_by_name(shape, 1, 1, name);
}

Weights fill(TransformerBlock& block) {
  Weights weights;
  block.visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& shape) {
    slot = drawn(shape, role) * (shape.size() == 2 ? 1 / std::sqrt(static_cast<double>(shape[1])) : 0.5);
    weights[role] = slot;
  });
  return weights;
}

/// The block written out, with what a test changes about it.
struct Reference {
  BlockSpec spec;
  Weights weights;
  BlockInputs inputs;
  ForwardContext context;
  LayerPlace place;
  std::function<at::Tensor(at::Tensor)> after_attention, after_feed_forward, parallel;

  at::Tensor weight(const std::string& role) const {
    const auto found = weights.find(role);
    return found == weights.end() ? at::Tensor() : found->second;
  }
  at::Tensor linear(const std::string& role, const at::Tensor& x) const {
    const auto y = at::matmul(x, weight(role + ".weight").t());
    return weight(role + ".bias").defined() ? y + weight(role + ".bias") : y;
  }
  at::Tensor norm(const std::string& role, const at::Tensor& x) const {
    if (spec.norm_kind == NormKind::kRmsNorm) {
      return x / (x.square().mean(-1, true) + spec.norm_epsilon).sqrt() * weight(role + ".weight");
    }
    const auto centred = x - x.mean(-1, true);
    const auto scaled = centred / (centred.square().mean(-1, true) + spec.norm_epsilon).sqrt();
    return scaled * weight(role + ".weight") + weight(role + ".bias");
  }
  at::Tensor drop(const at::Tensor& x, double probability, DropoutSite site) const {
    if (!context.is_training || probability == 0) return x;
    const auto mask = dropout_mask(x.numel(), probability, dropout_key(context, place, site)).view(x.sizes());
    return x * mask.to(at::kFloat) / (1 - probability);
  }
  /// Element i and element i + W/2 of a head are one complex number, which turns by its angle.
  at::Tensor turn(const at::Tensor& x) const {
    const auto half = spec.head_width / 2;
    const auto cos = inputs.rotary_cos.squeeze(0).narrow(-1, 0, half),
               sin = inputs.rotary_sin.squeeze(0).narrow(-1, 0, half);
    const auto real = x.narrow(-1, 0, half), imaginary = x.narrow(-1, half, half);
    return at::cat({real * cos - imaginary * sin, real * sin + imaginary * cos}, -1);
  }
  at::Tensor attend(const std::string& role, const at::Tensor& x, const at::Tensor& memory, const at::Tensor& bias,
                    bool is_causal, DropoutSite site) const {
    const auto q = linear(role + ".query", x), k = linear(role + ".key", memory), v = linear(role + ".value", memory);
    const auto width = spec.head_width, heads_per_shared = spec.num_heads / spec.num_key_value_heads;
    std::vector<at::Tensor> weights_of_heads, values;
    for (std::int64_t head = 0; head < spec.num_heads; ++head) {
      const auto shared = head / heads_per_shared;
      const double scale = spec.attention_scale != 0 ? spec.attention_scale : 1 / std::sqrt(static_cast<double>(width));
      auto one_q = q.narrow(-1, head * width, width), one_k = k.narrow(-1, shared * width, width);
      const bool is_self = role == "attention";
      if (is_self && spec.rotary) one_q = turn(one_q), one_k = turn(one_k);
      auto scores = at::bmm(one_q, one_k.transpose(1, 2)) * scale;
      if (bias.defined()) scores = scores + bias.squeeze(1);
      if (is_self && spec.has_position_bias) scores = scores + inputs.position_bias.select(1, head);
      if (is_causal) scores = scores.masked_fill(at::ones({x.size(1), x.size(1)}, at::kBool).triu(1), -1e30);
      weights_of_heads.push_back(scores.softmax(-1));
      values.push_back(v.narrow(-1, shared * width, width));
    }
    const auto dropped = drop(at::stack(weights_of_heads, 1), spec.attention_dropout, site);
    std::vector<at::Tensor> mixed;
    for (std::int64_t head = 0; head < spec.num_heads; ++head) {
      mixed.push_back(at::bmm(dropped.select(1, head), values[static_cast<std::size_t>(head)]));
    }
    return linear(role + ".output", at::cat(mixed, -1));
  }
  at::Tensor feed_forward(const at::Tensor& x) const {
    auto inner = spec.is_gated
                     ? activate(linear("feed_forward.gate", x), spec.activation) * linear("feed_forward.up", x)
                     : activate(linear("feed_forward.up", x), spec.activation);
    inner = drop(inner, spec.activation_dropout, DropoutSite::kFeedForwardInner);
    return linear("feed_forward.down", inner);
  }
  at::Tensor forward(const at::Tensor& start) const {
    const bool is_pre = spec.norm_place == NormPlace::kBefore;
    const auto before = [&](const std::string& role, const at::Tensor& x) { return is_pre ? norm(role, x) : x; };
    const auto after = [&](const std::string& role, const at::Tensor& x) { return is_pre ? x : norm(role, x); };
    auto x = start;
    auto normed = before("attention.norm", x);
    auto branch =
        attend("attention", normed, normed, inputs.attention_bias, spec.is_causal, DropoutSite::kAttentionWeights);
    branch = drop(branch, spec.hidden_dropout, DropoutSite::kAttentionOutput);
    if (after_attention) branch = after_attention(branch);
    x = after("attention.norm", x + branch);
    if (spec.has_cross_attention) {
      branch = attend("cross_attention", before("cross_attention.norm", x), inputs.memory, inputs.memory_bias, false,
                      DropoutSite::kCrossAttentionWeights);
      x = after("cross_attention.norm", x + drop(branch, spec.hidden_dropout, DropoutSite::kCrossAttentionOutput));
    }
    normed = before("feed_forward.norm", x);
    branch = drop(feed_forward(normed), spec.hidden_dropout, DropoutSite::kFeedForwardOutput);
    if (after_feed_forward) branch = after_feed_forward(branch);
    if (parallel) branch = branch + parallel(normed);
    return after("feed_forward.norm", x + branch);
  }
};

const LayerPlace kPlace{RandomDomain::kBackbone, 3};

/// A filled block, its reference and inputs.
struct Pair {
  explicit Pair(const BlockSpec& spec) : block(spec, kPlace) {
    reference.spec = spec;
    reference.place = kPlace;
    reference.weights = fill(block);
    x = drawn({2, 5, spec.width}, "x");
    auto bias = at::zeros({2, 1, 1, 5});
    bias.select(0, 1).narrow(-1, 3, 2).fill_(-1e30);
    reference.inputs.attention_bias = bias;
    reference.inputs.memory = drawn({2, 4, spec.width}, "memory");
    reference.inputs.memory_bias = bias.narrow(-1, 1, 4);
    if (spec.has_position_bias) reference.inputs.position_bias = drawn({1, spec.num_heads, 5, 5}, "position");
    if (spec.rotary) {
      const auto angles = drawn({1, 1, 5, spec.head_width / 2}, "angles");
      reference.inputs.rotary_cos = at::cat({angles, angles}, -1).cos();
      reference.inputs.rotary_sin = at::cat({angles, angles}, -1).sin();
    }
  }
  [[nodiscard]] at::Tensor found() const { return block.forward(x, reference.inputs, reference.context); }
  [[nodiscard]] double error() const { return (found() - reference.forward(x)).abs().max().item<double>(); }

  TransformerBlock block;
  Reference reference;
  at::Tensor x;
};

TEST(TransformerBlock, EqualsItsEquationsForEverySpec) {
  const std::map<std::string, std::function<void(BlockSpec&)>> variants = {
      {"post-norm", [](BlockSpec& /*spec*/) {}},
      {"pre-norm", [](BlockSpec& spec) { spec.norm_place = NormPlace::kBefore; }},
      {"RMSNorm", [](BlockSpec& spec) { spec.norm_kind = NormKind::kRmsNorm; }},
      {"epsilon", [](BlockSpec& spec) { spec.norm_epsilon = 0.1; }},
      {"gated", [](BlockSpec& spec) { spec.is_gated = true; }},
      {"relu", [](BlockSpec& spec) { spec.activation = Activation::kRelu; }},
      {"no attention bias", [](BlockSpec& spec) { spec.has_attention_bias = spec.has_output_bias = false; }},
      {"no feed-forward bias", [](BlockSpec& spec) { spec.has_feed_forward_bias = false; }},
      {"causal", [](BlockSpec& spec) { spec.is_causal = true; }},
      {"scale", [](BlockSpec& spec) { spec.attention_scale = 1; }},
      {"shared key/value heads", [](BlockSpec& spec) { spec.num_heads = 6, spec.num_key_value_heads = 2; }},
      {"position bias", [](BlockSpec& spec) { spec.has_position_bias = true; }},
      {"rotary positions",
       [](BlockSpec& spec) {
         spec.rotary = RotarySpec{{1.0, 0.1}, 1};
       }},
      {"narrow heads", [](BlockSpec& spec) { spec.head_width = 2; }},
      {"cross-attention", [](BlockSpec& spec) { spec.has_cross_attention = true; }},
      {"pre-norm cross-attention",
       [](BlockSpec& spec) { spec.has_cross_attention = true, spec.norm_place = NormPlace::kBefore; }},
  };
  std::vector<at::Tensor> outputs;
  for (const auto& [name, change] : variants) {
    auto spec = small_spec();
    change(spec);
    const Pair pair(spec);
    EXPECT_LT(pair.error(), 1e-5) << name;
    for (const auto& other : outputs) EXPECT_FALSE(at::allclose(pair.found(), other)) << name;
    outputs.push_back(pair.found());
  }
}

TEST(TransformerBlock, DrawsDropoutAtEverySiteWithItsOwnKey) {
  for (const auto place : {NormPlace::kBefore, NormPlace::kAfter}) {
    auto spec = small_spec();
    spec.norm_place = place;
    spec.has_cross_attention = true;
    for (auto* probability : {&spec.hidden_dropout, &spec.attention_dropout, &spec.activation_dropout}) {
      *probability = 0.3;
      Pair pair(spec);
      pair.reference.context = {.is_training = true, .key = {1, 2, 3}};
      EXPECT_LT(pair.error(), 1e-5);
      const auto trained = pair.found();
      pair.reference.context.is_training = false;
      EXPECT_LT(pair.error(), 1e-5);
      EXPECT_FALSE(at::allclose(trained, pair.found()));
      *probability = 0;
    }
  }
}

TEST(TransformerBlock, LeavesBranchesOutOfWholeRows) {
  auto spec = small_spec();
  spec.norm_place = NormPlace::kBefore;
  const at::Tensor x = drawn({16, 5, 12}, "x");
  TransformerBlock plain(spec, {RandomDomain::kBackbone, 4});
  fill(plain);
  spec.drop_path = 0.25;
  TransformerBlock block(spec, {RandomDomain::kBackbone, 4});
  fill(block);
  const ForwardContext training{.is_training = true, .key = {1, 2, 3}};
  const auto parts = [&](const TransformerBlock& of, const ForwardContext& context) {
    return std::vector{of.attention_part(x, {}, context), of.feed_forward_part(x, context)};
  };
  EXPECT_TRUE(at::equal(parts(block, {})[0], parts(plain, {})[0])) << "evaluation leaves nothing out";
  const auto whole = parts(plain, {}), found = parts(block, training);
  std::vector<at::Tensor> left_out;
  for (std::size_t part = 0; part < 2; ++part) {
    const at::Tensor is_left_out = found[part].eq(x).flatten(1).all(1);  // [16]
    EXPECT_TRUE(is_left_out.any().item<bool>());
    const at::Tensor scaled = x + (whole[part] - x) / 0.75;
    EXPECT_TRUE(at::allclose(found[part], at::where(is_left_out.view({16, 1, 1}), x, scaled), 1e-5, 1e-5));
    left_out.push_back(is_left_out);
  }
  EXPECT_FALSE(at::equal(left_out[0], left_out[1])) << "each branch draws by itself";
}

class DoublingInsert : public Insert {
 public:
  [[nodiscard]] at::Tensor forward(const at::Tensor& x, const ForwardContext& context) const override {
    EXPECT_TRUE(context.is_training);
    return x * 2 + 1;
  }
};

TEST(TransformerBlock, CallsInsertsAtTheirPlaces) {
  for (const auto norm_place : {NormPlace::kBefore, NormPlace::kAfter}) {
    for (const auto place :
         {InsertPlace::kAfterAttention, InsertPlace::kAfterFeedForward, InsertPlace::kParallelToFeedForward}) {
      auto spec = small_spec();
      spec.norm_place = norm_place;
      spec.hidden_dropout = 0.2;
      Pair pair(spec);
      pair.reference.context.is_training = true;
      const auto bare = pair.found();
      pair.block.set_insert(place, std::make_shared<DoublingInsert>());
      const auto twice_plus_one = [](const at::Tensor& x) { return x * 2 + 1; };
      if (place == InsertPlace::kAfterAttention) pair.reference.after_attention = twice_plus_one;
      if (place == InsertPlace::kAfterFeedForward) pair.reference.after_feed_forward = twice_plus_one;
      if (place == InsertPlace::kParallelToFeedForward) pair.reference.parallel = twice_plus_one;
      EXPECT_LT(pair.error(), 1e-5);
      EXPECT_FALSE(at::allclose(pair.found(), bare));
      pair.block.set_insert(place, nullptr);
      EXPECT_TRUE(at::equal(pair.found(), bare));
    }
  }
}

class MatrixDelta : public LinearDelta {
 public:
  explicit MatrixDelta(at::Tensor matrix) : matrix_(std::move(matrix)) {}
  [[nodiscard]] at::Tensor forward(const at::Tensor& x, const ForwardContext& /*context*/) const override {
    return at::matmul(x, matrix_.t());
  }

 private:
  at::Tensor matrix_;
};

TEST(TransformerBlock, AddsADeltaToTheLinearThatHoldsIt) {
  auto spec = small_spec();
  spec.is_gated = true;
  spec.has_cross_attention = true;
  Pair pair(spec);
  const auto bare = pair.found();
  std::vector<std::string> roles;
  pair.block.visit_linears([&](const std::string& role, Linear& linear) {
    roles.push_back(role);
    const auto delta = drawn({linear.out_features, linear.in_features}, role + ".delta") * 0.3;
    auto& merged = pair.reference.weights.at(role + ".weight");
    const auto original = merged;
    linear.delta = std::make_shared<MatrixDelta>(delta);
    merged = original + delta;
    EXPECT_LT(pair.error(), 1e-5) << role;
    EXPECT_FALSE(at::allclose(pair.found(), bare)) << role;
    linear.delta = nullptr;
    merged = original;
  });
  EXPECT_THAT(roles, testing::UnorderedElementsAre("attention.query", "attention.key", "attention.value",
                                                   "attention.output", "cross_attention.query", "cross_attention.key",
                                                   "cross_attention.value", "cross_attention.output", "feed_forward.up",
                                                   "feed_forward.gate", "feed_forward.down"));
}

TEST(TransformerBlock, IsItsTwoPartsInTurn) {
  const Pair pair(small_spec());
  const auto middle = pair.block.attention_part(pair.x, pair.reference.inputs, {});
  EXPECT_FALSE(at::allclose(middle, pair.x));
  EXPECT_TRUE(at::equal(pair.block.feed_forward_part(middle, {}), pair.found()));
}

TEST(Linear, CastsATrainedFp32WeightOnUse) {
  Linear linear(6, 3, /*bias_wanted=*/true);
  linear.weight = drawn({3, 6}, "weight").requires_grad_();
  linear.bias = drawn({3}, "bias").requires_grad_();
  const auto x = drawn({4, 6}, "x").to(at::kBFloat16);
  const auto y = linear.forward(x, {});
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::allclose(y.to(at::kFloat), at::linear(x.to(at::kFloat), linear.weight, linear.bias), 0.03, 0.03));
  y.sum().backward();
  EXPECT_EQ(linear.weight.grad().scalar_type(), at::kFloat);
}

TEST(Norm, KeepsItsStatisticsInFp32) {
  for (const auto kind : {NormKind::kLayerNorm, NormKind::kRmsNorm}) {
    const Norm norm{kind, 1e-6, 256, at::ones({256}), kind == NormKind::kLayerNorm ? at::zeros({256}) : at::Tensor()};
    // Squares of 400 overflow fp16.
    const auto x = drawn({3, 256}, "x") * 400;
    const auto narrow = norm.forward(x.to(at::kHalf));
    EXPECT_EQ(narrow.scalar_type(), at::kHalf);
    EXPECT_TRUE(at::allclose(narrow.to(at::kFloat), norm.forward(x), 0.01, 0.01));
  }
}

TEST(Activation, HasTheNamesAndTheFormulasOfHuggingFace) {
  const auto x = at::linspace(-4, 4, 33, at::kFloat);
  const auto tanh_gelu = 0.5 * x * (1 + at::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x.pow(3))));
  const std::map<std::string, at::Tensor> expected = {
      {"gelu", 0.5 * x * (1 + at::erf(x / std::sqrt(2.0)))}, {"gelu_new", tanh_gelu},  {"gelu_pytorch_tanh", tanh_gelu},
      {"quick_gelu", x / (1 + at::exp(-1.702 * x))},         {"relu", x.clamp_min(0)}, {"silu", x / (1 + at::exp(-x))},
  };
  for (const auto& [name, values] : expected) {
    EXPECT_TRUE(at::allclose(activate(x, activation_from(name)), values, 1e-5, 1e-6)) << name;
  }
}

TEST(Activation, RefusesAnUnknownNameAndListsTheKnown) {
  try {
    activation_from("gelu_10");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("gelu_10"), testing::HasSubstr("quick_gelu")));
  }
}

}  // namespace
}  // namespace espalier::model
