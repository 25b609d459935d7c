// SPDX-License-Identifier: Apache-2.0
// B batch, T tokens, D backbone width, R rank
#include "peft/last.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <filesystem>

#include "common/error.h"
#include "peft/normed_linear.h"
#include "stages.h"

namespace espalier::peft {
namespace {

MethodConfig last_config(LastConfig last = {.rank = 4}) {
  return {.method = "last", .last = last};
}

/// The recurrence as published: u_0 = z_0, u_i = F_i(u_{i-1} + z_i), out = u_m - (z_0 + ... + z_{m-1}), of a BERT.
at::Tensor last_state_by_the_book(const Stages& stages, const std::vector<at::Tensor>& z, const LastConfig& config,
                                  const at::Tensor& mask) {
  const at::Tensor bias = at::zeros(mask.sizes(), at::kDouble).masked_fill(mask.eq(0), -1e9).unsqueeze(1).unsqueeze(1);
  const auto trained = [&](const std::string& name) { return stages.trained(name).to(at::kDouble); };
  at::Tensor state = z[0].to(at::kDouble), sum = at::zeros_like(state);
  for (std::size_t i = static_cast<std::size_t>(config.group_size); i < z.size();
       i += static_cast<std::size_t>(config.group_size)) {
    sum = sum + z[i - static_cast<std::size_t>(config.group_size)];
    state = state + z[i];
    for (int number = 0; number < config.modules_per_group; ++number) {
      const std::string name = "last.encoder." + std::to_string(i - 1) + ".module." + std::to_string(number);
      const at::Tensor normed =
          at::layer_norm(state, {state.size(-1)}, trained(name + ".norm.weight"), trained(name + ".norm.bias"), 1e-12);
      const auto parts = at::linear(normed, trained(name + ".qkv.weight")).chunk(3, -1);
      const auto heads = [&](const at::Tensor& x) { return x.unflatten(-1, {config.heads, -1}).transpose(1, 2); };
      const double scale = std::sqrt(static_cast<double>(config.rank / config.heads));
      const at::Tensor scores = heads(parts[0]).matmul(heads(parts[1]).transpose(2, 3)) / scale + bias;
      const at::Tensor mixed = at::softmax(scores, -1).matmul(heads(parts[2])).transpose(1, 2).flatten(2);
      state = state + at::linear(mixed, trained(name + ".up.weight"));
    }
  }
  return config.correction ? state - sum : state;
}

TEST(LastNetwork, ComputesThePublishedRecurrence) {
  const TinyModel tiny = make_tiny({});
  const model::SliceOptions in_double{.compute_type = at::kDouble};
  std::vector<at::Tensor> z;
  static_cast<void>(run_bare(tiny, make_batch(), in_double, &z));
  for (const LastConfig& last :
       {LastConfig{.rank = 4}, LastConfig{.rank = 4, .group_size = 2, .modules_per_group = 3, .heads = 2},
        LastConfig{.rank = 2, .modules_per_group = 1, .correction = false}}) {
    Stages stages(tiny, last_config(last), 2, in_double);
    stir(stages, 0.3);
    const at::Tensor state = last_state_by_the_book(stages, z, last, make_batch().at("attention_mask"));
    const auto linear = [&](const std::string& name, const at::Tensor& x) {
      return at::linear(x, stages.trained(name + ".weight").to(at::kDouble),
                        stages.trained(name + ".bias").to(at::kDouble));
    };
    const at::Tensor expected =
        linear("head.classifier", at::tanh(linear("head.dense", state.select(1, 0).to(at::kFloat).to(at::kDouble))));
    EXPECT_TRUE(at::allclose(stages.evaluate(make_batch()).to(at::kDouble), expected, 1e-5, 1e-6));
  }
}

class LastFamilies : public testing::TestWithParam<const char*> {
 protected:
  LastFamilies() {
    const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden" / GetParam();
    tiny_ = {model::read_backbone(folder, {}), model::open_model_folder(folder)};
    const auto golden = model::open_safetensors(folder / "golden.safetensors");
    for (const auto* name : {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}) {
      if (golden->contains(name)) batch_[name] = golden->get(name);
    }
  }

  TinyModel tiny_;
  model::NamedTensors batch_;
};

TEST_P(LastFamilies, StartAtTheFrozenBackboneBitForBit) {
  Stages stages(tiny_, last_config(), 2);
  EXPECT_TRUE(at::equal(stages.evaluate(batch_), run_bare(tiny_, batch_)));
}

TEST_P(LastFamilies, GiveTheSameGradientsOnAnyNumberOfStages) {
  const std::int64_t num_blocks = tiny_.backbone.num_blocks();
  // One group of all blocks is cut inside.
  for (const std::int64_t group_size : {std::int64_t{1}, num_blocks}) {
    const MethodConfig config = last_config({.rank = 4, .group_size = group_size, .heads = 2, .up_deviation = 0.3});
    const LossGradient uneven = [](const at::Tensor& logits) {
      return (at::arange(logits.numel(), at::kFloat) * 0.7).sin().view(logits.sizes());
    };
    const Step expected = Stages(tiny_, config, 1).step(batch_, training_context(), uneven);
    for (const auto& [name, gradient] : expected.gradients) {
      EXPECT_GT(gradient.abs().max().item<float>(), 0) << name;
    }
    EXPECT_EQ(expected.gradients.size(), Stages(tiny_, config, 1).trained().size());
    for (int num_stages = 2; num_stages <= num_blocks; ++num_stages) {
      const Step step = Stages(tiny_, config, num_stages).step(batch_, training_context(), uneven);
      EXPECT_TRUE(at::equal(step.logits, expected.logits)) << num_stages;
      for (const auto& [name, gradient] : expected.gradients) {
        EXPECT_TRUE(at::equal(step.gradients.at(name), gradient)) << name << " on " << num_stages << " stages";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, LastFamilies,
                         testing::Values("bert_1", "roberta_1", "opt_1", "gpt2_1", "llama_1", "vit_1"),
                         [](const auto& tested) { return std::string(tested.param); });

TEST(LastNetwork, AgreesWithFiniteDifferences) {
  const TinyModel tiny = make_tiny({.num_blocks = 3, .dropout = 0});
  const MethodConfig config = last_config({.rank = 4, .heads = 2, .up_bias = true, .qkv_bias = true});
  Stages stages(tiny, config, 2, {.compute_type = at::kDouble});
  stir(stages, 0.3);
  expect_finite_differences(stages, "side.delta");
}

TEST(NormedLinear, IsTheNormAndTheLinearInSequence) {
  const auto leaf = [](at::IntArrayRef sizes, double phase) {
    const std::int64_t count = c10::multiply_integers(sizes);
    return (at::arange(count, at::kDouble) * 0.37 + phase).sin().view(sizes).requires_grad_();
  };
  model::Norm norm{model::NormKind::kLayerNorm, 1e-5, 6, leaf({6}, 1), leaf({6}, 2)};
  model::Linear linear(6, 5, /*bias_wanted=*/true);
  linear.weight = leaf({5, 6}, 3);
  linear.bias = leaf({5}, 4);
  const at::Tensor x = leaf({2, 3, 6}, 5);
  const at::Tensor direction = leaf({2, 3, 5}, 6).detach();
  const std::vector<at::Tensor> inputs = {x, norm.weight, norm.bias, linear.weight, linear.bias};
  const at::Tensor found = normed_linear(x, {x}, norm, linear), expected = linear.forward(norm.forward(x), {});
  EXPECT_TRUE(at::equal(found, expected));
  const auto gradients = torch::autograd::grad({found}, inputs, {direction});
  const auto expected_gradients = torch::autograd::grad({expected}, inputs, {direction});
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_TRUE(at::allclose(gradients[i], expected_gradients[i], 1e-12, 1e-12)) << i;
  }
}

TEST(NormedLinear, KeepsWhatItsStateIsMadeOfInItsPlace) {
  const auto draw = [](at::IntArrayRef sizes, double phase) {
    return (at::arange(c10::multiply_integers(sizes), at::kDouble) * 0.37 + phase).sin().view(sizes);
  };
  model::Norm norm{model::NormKind::kLayerNorm, 1e-5, 6, draw({6}, 1), draw({6}, 2)};
  model::Linear linear(6, 5, /*bias_wanted=*/false);
  linear.weight = draw({5, 6}, 3).requires_grad_();
  norm.weight.requires_grad_();
  norm.bias.requires_grad_();
  const at::Tensor base = draw({2, 3, 6}, 5).requires_grad_(), narrow = draw({2, 3, 2}, 6).requires_grad_();
  const at::Tensor up = draw({6, 2}, 7).requires_grad_(), up_bias = draw({6}, 8).requires_grad_();
  at::Tensor x = base + at::linear(narrow, up, up_bias);
  const std::vector<at::Tensor> inputs = {base, narrow, up, up_bias, norm.weight, norm.bias, linear.weight};
  const at::Tensor expected = linear.forward(norm.forward(x), {});
  const at::Tensor direction = draw({2, 3, 5}, 9);
  const auto expected_gradients = torch::autograd::grad({expected}, inputs, {direction}, /*retain_graph=*/true);
  x = base + at::linear(narrow, up, up_bias);
  const at::Tensor found = normed_linear(x, {base, {{narrow, up, up_bias}}}, norm, linear);
  EXPECT_TRUE(at::equal(found, expected));
  EXPECT_EQ(x.storage().use_count(), 1) << "the state itself is kept";
  x.reset();
  const auto gradients = torch::autograd::grad({found}, inputs, {direction});
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_TRUE(at::allclose(gradients[i], expected_gradients[i], 1e-12, 1e-12)) << i;
  }
}

std::string last_error(const LastConfig& config) {
  return config_error([&] { static_cast<void>(count_last(config, plan_tiny({}))); });
}

TEST(LastOptions, AreRefusedWhereTheyDoNotFit) {
  EXPECT_THAT(last_error({.rank = 4, .heads = 3}), ::testing::HasSubstr("peft.last.heads"));
  EXPECT_THAT(last_error({.rank = 17}), ::testing::HasSubstr("at most 16"));
  EXPECT_THAT(last_error({.rank = 4, .group_size = 3}), ::testing::HasSubstr("4 blocks"));
}

TEST(LastNetwork, KeepsAsMuchForEveryModuleWhateverTheFeedForwardsWidth) {
  const auto kept = [](std::int64_t feed_forward_width, std::int64_t modules) {
    const TinyConfig tiny{.num_blocks = 4, .feed_forward_width = feed_forward_width};
    return used_bytes(tiny, last_config({.rank = 4, .modules_per_group = modules})).kept;
  };
  EXPECT_EQ(kept(256, 1), kept(32, 1));
  EXPECT_EQ(kept(32, 3) - kept(32, 2), kept(32, 2) - kept(32, 1));
  EXPECT_GT(kept(32, 2), kept(32, 1));
}

}  // namespace
}  // namespace espalier::peft
