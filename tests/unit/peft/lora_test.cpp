// SPDX-License-Identifier: Apache-2.0
#include "peft/lora.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/error.h"
#include "stages.h"

namespace espalier::peft {
namespace {

using ::testing::HasSubstr;

MethodConfig lora_config() {
  MethodConfig config{.method = "lora"};
  config.lora.rank = 2;
  config.lora.targets = {"attention.query", "attention.value", "feed_forward.up"};
  return config;
}

std::string lora_error(const LoraConfig& config) {
  return config_error([&] {
    const model::Backbone backbone = plan_tiny({});
    check_targets("peft.lora.targets", config.targets, backbone);
    static_cast<void>(plan_lora(config, backbone.chain[1]));
  });
}

TEST(LoraMethod, StartsAsTheBareBackbone) {
  const TinyModel tiny = make_tiny({});
  for (const int num_stages : {1, 3}) {
    EXPECT_TRUE(
        at::equal(Stages(tiny, lora_config(), num_stages).evaluate(make_batch()), run_bare(tiny, make_batch())));
  }
}

TEST(LoraMethod, EqualsTheBackboneWithTheProductAddedToItsWeights) {
  const TinyModel tiny = make_tiny({});
  Stages factored(tiny, lora_config(), 2);
  Stages merged(tiny, {.method = "full"}, 2);
  for (const TrainedTensor& tensor : factored.trained()) {
    if (tensor.name.ends_with(".lora_a")) {
      const std::string linear = tensor.name.substr(0, tensor.name.size() - std::string(".lora_a").size());
      const at::Tensor b = factored.trained(linear + ".lora_b").detach();
      b.copy_(at::arange(b.numel()).view(b.sizes()).sin());
      const double scale = 16.0 / 2.0;
      merged.trained(linear + ".weight").detach().add_(b.mm(tensor.value.detach()), scale);
    }
  }
  const at::Tensor expected = merged.evaluate(make_batch());
  EXPECT_TRUE(at::allclose(factored.evaluate(make_batch()), expected, 1e-4, 1e-5));
  EXPECT_FALSE(at::allclose(expected, run_bare(tiny, make_batch()), 1e-2, 1e-2));
}

TEST(LoraMethod, DrawsTheFirstFactorWithinItsBoundAndTheSecondAsZero) {
  const TinyModel tiny = make_tiny({});
  for (const TrainedTensor& tensor : Stages(tiny, lora_config(), 1).trained()) {
    if (tensor.name.ends_with(".lora_a")) {
      const double bound = 1.0 / std::sqrt(16.0);
      const double largest = tensor.value.abs().max().item<double>();
      EXPECT_LE(largest, bound) << tensor.name;
      EXPECT_GT(largest, 0.8 * bound) << tensor.name;
    } else if (tensor.name.ends_with(".lora_b")) {
      EXPECT_TRUE(at::equal(tensor.value, at::zeros_like(tensor.value))) << tensor.name;
    }
  }
}

TEST(LoraMethod, StartsFromAZeroFirstFactorOnRequest) {
  const TinyModel tiny = make_tiny({.width = 64, .num_heads = 4});
  MethodConfig config = lora_config();
  config.lora.initial = "zero_a";
  const Stages stages(tiny, config, 2);
  EXPECT_EQ(stages.trained("encoder.1.attention.query.lora_a").abs().max().item<double>(), 0);
  EXPECT_NEAR(stages.trained("encoder.1.attention.query.lora_b").detach().std().item<double>(), 1, 0.2);
}

TEST(LoraMethod, SendsNothingBackBelowItsFirstTarget) {
  const TinyModel tiny = make_tiny({});
  using Names = std::vector<std::string>;
  for (const auto& [target, expected] :
       {std::pair{"encoder.2.attention.query", std::vector<Names>{{}, {}, {"hidden"}}},
        std::pair{"encoder.0.attention.query", std::vector<Names>{{"hidden"}, {"hidden"}, {"hidden"}}}}) {
    MethodConfig config = lora_config();
    config.lora.targets = {target};
    EXPECT_EQ(Stages(tiny, config, 4).step(make_batch(), training_context()).sent_back, expected) << target;
  }
}

TEST(LoraMethod, PutsFactorsOnSingleLinearsThatAreNamed) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = lora_config();
  config.lora.targets = {"attention.query", "encoder.2.feed_forward.down"};
  std::vector<std::string> adapted;
  for (const TrainedTensor& tensor : Stages(tiny, config, 2).trained()) {
    if (tensor.name.ends_with(".lora_a")) {
      adapted.push_back(tensor.name);
    }
  }
  EXPECT_THAT(adapted, ::testing::ElementsAre("encoder.0.attention.query.lora_a", "encoder.1.attention.query.lora_a",
                                              "encoder.2.attention.query.lora_a", "encoder.2.feed_forward.down.lora_a",
                                              "encoder.3.attention.query.lora_a"));
  EXPECT_EQ(count_lora(config.lora, tiny.backbone), 4 * 2 * (16 + 16) + 2 * (32 + 16));
  config.lora.targets = {"encoder.4.attention.query"};
  EXPECT_THAT(lora_error(config.lora), HasSubstr("encoder.4.attention.query"));
}

TEST(LoraMethod, ScalesByTheRootOfTheRankWhenStabilized) {
  LoraConfig config{.rank = 4, .alpha = 12};
  EXPECT_EQ(lora_scale(config), 3);
  config.rank_stabilized = true;
  EXPECT_EQ(lora_scale(config), 6);
}

TEST(LoraMethod, TrainsTheBiasesThatAreAskedFor) {
  const TinyModel tiny = make_tiny({});
  for (const std::string biases : {"none", "targets", "all"}) {
    MethodConfig config = lora_config();
    config.lora.biases = biases;
    Stages stages(tiny, config, 3);
    const auto gradients = stages.step(make_batch(), training_context()).gradients;
    EXPECT_EQ(gradients.contains("encoder.1.attention.value.bias"), biases != "none") << biases;
    EXPECT_EQ(gradients.contains("encoder.1.attention.key.bias"), biases == "all") << biases;
    EXPECT_EQ(gradients.contains("embedding.norm.bias"), biases == "all") << biases;
    std::int64_t in_factors_and_biases = 0;
    for (const TrainedTensor& tensor : stages.trained()) {
      in_factors_and_biases += tensor.name.starts_with("head.") ? 0 : tensor.value.numel();
      EXPECT_FALSE(tensor.decays && tensor.name.ends_with(".bias")) << tensor.name;
    }
    EXPECT_EQ(in_factors_and_biases, count_lora(config.lora, tiny.backbone)) << biases;
    EXPECT_TRUE(at::equal(stages.evaluate(make_batch()), run_bare(tiny, make_batch()))) << biases;
  }
}

TEST(LoraMethod, DropsWhatTheFactorsReadAtEachTargetOnItsOwn) {
  const auto read_ones = [](std::uint64_t linear, bool is_training) {
    LoraDelta delta;
    delta.a = at::eye(64);
    delta.b = at::eye(64);
    delta.dropout = 0.5;
    delta.place = {RandomDomain::kAdapter, 3};
    delta.site = static_cast<model::DropoutSite>(static_cast<std::uint64_t>(model::DropoutSite::kFactor) + linear);
    model::ForwardContext context = training_context();
    context.is_training = is_training;
    return delta.forward(at::ones({4, 64}), context);
  };
  EXPECT_TRUE(at::equal(read_ones(0, /*is_training=*/false), at::ones({4, 64})));
  const at::Tensor query = read_ones(0, /*is_training=*/true);
  EXPECT_TRUE(at::equal(query.eq(0).logical_or(query.eq(2)), at::ones({4, 64}, at::kBool)));
  EXPECT_FALSE(at::equal(query, read_ones(2, /*is_training=*/true)));
}

TEST(LoraMethod, ChangesItsStepWithDropout) {
  TinyConfig without_dropout;
  without_dropout.dropout = 0;
  const TinyModel tiny = make_tiny(without_dropout);
  MethodConfig config = lora_config();
  const auto query_gradient = [&] {
    return Stages(tiny, config, 1)
        .step(make_batch(), training_context())
        .gradients.at("encoder.0.attention.query.lora_b");
  };
  const at::Tensor plain = query_gradient();
  config.lora.dropout = 0.3;
  EXPECT_FALSE(at::equal(query_gradient(), plain));
}

TEST(LoraPlan, NamesTheRolesThereAreWhenOneIsUnknown) {
  const std::string error = lora_error({.targets = {"attention.query", "q_proj"}});
  EXPECT_THAT(error, HasSubstr("peft.lora.targets"));
  EXPECT_THAT(error, HasSubstr("q_proj"));
  EXPECT_THAT(error, HasSubstr("attention.query, attention.key, attention.value, attention.output, feed_forward.up"));
}

TEST(LoraPlan, RefusesARankAboveTheWidthAndTargetsTwiceOrNone) {
  EXPECT_THAT(lora_error({.rank = 17}), HasSubstr("expected at most 16"));
  EXPECT_EQ(lora_error({.rank = 16}), "");
  EXPECT_THAT(lora_error({.targets = {"attention.query", "attention.query"}}), HasSubstr("each once"));
  EXPECT_THAT(lora_error({.targets = {}}), HasSubstr("at least one"));
}

}  // namespace
}  // namespace espalier::peft
