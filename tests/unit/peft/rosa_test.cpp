// SPDX-License-Identifier: Apache-2.0
// ROSA on a model: what trains, that events preserve the function, when they come, and gradients by finite differences.
#include "peft/rosa.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <filesystem>

#include "common/error.h"
#include "peft/merge.h"
#include "stages.h"

namespace espalier::peft {
namespace {

using ::testing::HasSubstr;

MethodConfig rosa_config() {
  MethodConfig config{.method = "rosa"};
  config.rosa.rank = 4;
  config.rosa.targets = {"attention.query", "attention.output", "feed_forward.up", "feed_forward.down"};
  return config;
}

/// Moves every factor a little, as training would.
void disturb(const Stages& stages) {
  for (const TrainedTensor& tensor : stages.trained()) {
    tensor.value.detach().add_(at::arange(tensor.value.numel()).view(tensor.value.sizes()).sin(), 0.02);
  }
}

at::Tensor kept(const Stages& stages, const std::string& name) {
  for (const auto& method : stages.methods) {
    const auto tensors = method->kept_tensors();
    if (const auto found = tensors.find(name); found != tensors.end()) {
      return found->second;
    }
  }
  ADD_FAILURE() << "no kept tensor " << name;
  return {};
}

/// Weights and biases of a model trained in full that does what `stages` do.
Stages merged(const TinyModel& tiny, const Stages& stages) {
  Stages full(tiny, {.method = "full"}, 1);
  for (const TrainedTensor& tensor : stages.trained()) {
    if (tensor.name.ends_with(".rosa_a")) {
      const std::string linear = tensor.name.substr(0, tensor.name.size() - std::string(".rosa_a").size());
      const at::Tensor product = stages.trained(linear + ".rosa_b").detach().mm(tensor.value.detach());
      full.trained(linear + ".weight").detach().copy_(kept(stages, linear + ".weight") + product);
    } else if (!tensor.name.ends_with(".rosa_b")) {
      full.trained(tensor.name).detach().copy_(tensor.value.detach());
    }
  }
  return full;
}

TEST(RosaMethod, StartsAsTheBareBackboneBitForBitAndStaysItInItsFirstEvent) {
  const TinyModel tiny = make_tiny({});
  const at::Tensor bare = run_bare(tiny, make_batch());
  for (const int num_stages : {1, 3}) {
    Stages stages(tiny, rosa_config(), num_stages, {}, /*runs_first_event=*/false);
    EXPECT_TRUE(at::equal(stages.evaluate(make_batch()), bare));
    run_event(stages, 0);
    EXPECT_TRUE(at::allclose(stages.evaluate(make_batch()), bare, 0, 1e-4));
    EXPECT_GT(stages.trained("encoder.1.attention.query.rosa_a").abs().max().item<double>(), 0);
  }
}

TEST(RosaMethod, KeepsItsFunctionInEveryEventOfEverySampling) {
  const TinyModel tiny = make_tiny({});
  for (const char* sampling : {"window", "uniform", "top", "bottom"}) {
    for (const char* sigma : {"a", "both"}) {
      MethodConfig config = rosa_config();
      config.rosa.sampling = sampling;
      config.rosa.sigma = sigma;
      config.rosa.svd_type = sigma == std::string("a") ? "fp32" : "fp64";
      Stages stages(tiny, config, 2);
      for (std::int64_t event = 1; event < 4; ++event) {
        disturb(stages);
        const at::Tensor before = stages.evaluate(make_batch());
        const at::Tensor factor = stages.trained("encoder.2.feed_forward.up.rosa_b").detach().clone();
        run_event(stages, event);
        EXPECT_TRUE(at::allclose(stages.evaluate(make_batch()), before, 0, 1e-4)) << sampling << " " << sigma;
        EXPECT_FALSE(at::allclose(stages.trained("encoder.2.feed_forward.up.rosa_b"), factor, 0, 1e-3));
      }
    }
  }
}

TEST(RosaMethod, EqualsTheModelWithItsFactorsMergedIntoItsWeights) {
  const TinyModel tiny = make_tiny({});
  Stages stages(tiny, rosa_config(), 2);
  disturb(stages);
  const at::Tensor expected = merged(tiny, stages).evaluate(make_batch());
  EXPECT_TRUE(at::allclose(stages.evaluate(make_batch()), expected, 0, 1e-4));
  EXPECT_FALSE(at::allclose(expected, run_bare(tiny, make_batch()), 0, 1e-2));
}

TEST(RosaMethod, ChangesItsFunctionWhenTheDirectionsAreAddedAndNotTakenOut) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = rosa_config();
  config.rosa.split = "add";
  const at::Tensor bare = run_bare(tiny, make_batch());
  EXPECT_FALSE(at::allclose(Stages(tiny, config, 1).evaluate(make_batch()), bare, 0, 1e-3));

  config.rosa.split = "random_add";
  Stages random(tiny, config, 1);
  EXPECT_TRUE(at::equal(random.evaluate(make_batch()), bare));
  const at::Tensor b = random.trained("encoder.0.attention.query.rosa_b").detach();
  EXPECT_NEAR(b.std().item<double>(), 1, 0.3);
  const at::Tensor first = b.clone();
  disturb(random);
  const at::Tensor before = random.evaluate(make_batch());
  run_event(random, 1);
  EXPECT_TRUE(at::allclose(random.evaluate(make_batch()), before, 0, 1e-4));
  EXPECT_FALSE(at::allclose(b, first, 0, 0.1)) << "an event draws anew";
  EXPECT_EQ(random.trained("encoder.0.attention.query.rosa_a").abs().max().item<double>(), 0);
}

TEST(RosaMethod, KeepsTheIdentityOfItsTensorsInAnEvent) {
  const TinyModel tiny = make_tiny({});
  Stages stages(tiny, rosa_config(), 1);
  const auto before = stages.trained();
  const auto kept_before = stages.methods.front()->kept_tensors();
  run_event(stages, 1);
  const auto after = stages.trained();
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(before[i].value.is_same(after[i].value)) << before[i].name;
  }
  for (const auto& [name, tensor] : stages.methods.front()->kept_tensors()) {
    EXPECT_TRUE(tensor.is_same(kept_before.at(name))) << name;
    EXPECT_FALSE(tensor.requires_grad()) << name;
  }
}

TEST(RosaMethod, DrawsTheSameOnAnyLayoutAndOtherwiseForAnotherEventOrWeight) {
  const TinyModel tiny = make_tiny({});
  Stages one(tiny, rosa_config(), 1), three(tiny, rosa_config(), 3);
  for (std::int64_t event = 0; event < 3; ++event) {
    run_event(one, event);
    run_event(three, event);
    for (const TrainedTensor& tensor : one.trained()) {
      EXPECT_TRUE(at::equal(tensor.value, three.trained(tensor.name))) << tensor.name << " after event " << event;
    }
  }
}

TEST(RosaMethod, KeepsWhatItSplitsInFp32UnderANarrowComputeType) {
  const TinyModel tiny = make_tiny({});
  Stages stages(tiny, rosa_config(), 2, {.compute_type = at::kBFloat16});
  const model::LayerPlan& layer = tiny.backbone.chain[2];
  const at::Tensor stored =
      tiny.weights->get(tiny.backbone.family->stored_weight(layer, "attention.query.weight").names.front());
  const at::Tensor sum = kept(stages, layer.name + ".attention.query.weight") +
                         stages.trained(layer.name + ".attention.query.rosa_b")
                             .detach()
                             .mm(stages.trained(layer.name + ".attention.query.rosa_a").detach());
  EXPECT_TRUE(at::allclose(sum, stored, 0, 1e-6));
}

TEST(RosaMethod, TrainsTheWeightItselfFromItsSmallerWidthOn) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = rosa_config();
  config.rosa.rank = 16;
  Stages stages(tiny, config, 2);
  EXPECT_TRUE(stages.trained("encoder.1.attention.query.weight").requires_grad());
  EXPECT_EQ(stages.methods.front()->resampling()->num_weights(), 0);
  EXPECT_TRUE(stages.methods.front()->kept_tensors().empty());
  EXPECT_TRUE(at::equal(stages.evaluate(make_batch()), run_bare(tiny, make_batch())));
  EXPECT_EQ(count_rosa(config.rosa, tiny.backbone), 4 * (2 * 16 * 16 + 2 * 16 * 32));
}

TEST(RosaMethod, CountsTheWeightItselfFromItsSmallerWidthOn) {
  EXPECT_EQ(count_rosa({.rank = 16}, plan_tiny({})), 4 * 4 * 16 * 16);
}

TEST(RosaMethod, TakesItsRankAsAShareOfTheSmallerWidth) {
  const auto rank = [](double option, std::int64_t in, std::int64_t out) {
    return rosa_rank({.rank = option}, {.role = "", .linear = 0, .in_features = in, .out_features = out});
  };
  EXPECT_EQ(rank(0.0125, 768, 2304), 9);
  EXPECT_EQ(rank(0.1, 3072, 768), 76);
  EXPECT_EQ(rank(0.1, 1280, 1280), 128);
  EXPECT_EQ(rank(0.001, 64, 64), 1);
  EXPECT_EQ(rank(1, 64, 64), 1);
  EXPECT_EQ(rank(65, 64, 128), 64);
}

TEST(RosaMethod, TrainsOneFactorWhenAskedAndKeepsTheOther) {
  const TinyModel tiny = make_tiny({});
  for (const char* factor : {"a", "b"}) {
    MethodConfig config = rosa_config();
    config.rosa.trained_factors = factor;
    Stages stages(tiny, config, 2);
    const std::string other = factor == std::string("a") ? "b" : "a";
    const std::string linear = "encoder.3.feed_forward.up";
    EXPECT_TRUE(stages.trained(linear + ".rosa_" + factor).requires_grad());
    EXPECT_FALSE(kept(stages, linear + ".rosa_" + other).requires_grad());
    EXPECT_GT(kept(stages, linear + ".rosa_" + other).abs().max().item<double>(), 0);
    std::int64_t trained = 0;
    for (const TrainedTensor& tensor : stages.trained()) {
      trained += tensor.name.starts_with("head.") ? 0 : tensor.value.numel();
    }
    EXPECT_EQ(trained, count_rosa(config.rosa, tiny.backbone));
    EXPECT_EQ(trained, 4 * 4 * (2 * 16 + 16 + 32));
  }
}

TEST(RosaMethod, LeavesTheHeadAsItStartsWhenAsked) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = rosa_config();
  config.rosa.head_trained = false;
  const Stages stages(tiny, config, 2);
  EXPECT_EQ(count_trained(config, tiny.backbone).head, 0);
  for (const TrainedTensor& tensor : stages.trained()) {
    EXPECT_FALSE(tensor.name.starts_with("head.")) << tensor.name;
  }
  EXPECT_FALSE(kept(stages, "head.classifier.weight").requires_grad());
}

TEST(RosaMethod, TrainsTheBiasesThatAreAskedFor) {
  const TinyModel tiny = make_tiny({});
  for (const std::string biases : {"none", "targets", "all"}) {
    MethodConfig config = rosa_config();
    config.rosa.biases = biases;
    Stages stages(tiny, config, 3);
    const auto gradients = stages.step(make_batch(), training_context()).gradients;
    EXPECT_EQ(gradients.contains("encoder.1.attention.query.bias"), biases != "none") << biases;
    EXPECT_EQ(gradients.contains("encoder.1.attention.key.bias"), biases == "all") << biases;
    std::int64_t found = 0;
    for (const TrainedTensor& tensor : stages.trained()) {
      found += tensor.name.starts_with("head.") ? 0 : tensor.value.numel();
      EXPECT_FALSE(tensor.decays && tensor.name.ends_with(".bias")) << tensor.name;
    }
    EXPECT_EQ(found, count_rosa(config.rosa, tiny.backbone)) << biases;
    disturb(stages);
    EXPECT_TRUE(at::allclose(stages.evaluate(make_batch()), merged(tiny, stages).evaluate(make_batch()), 0, 1e-4));
  }
}

TEST(RosaMethod, KeepsWeightDecayOffItsFactorsOnRequest) {
  const TinyModel tiny = make_tiny({});
  for (const bool factors_decay : {true, false}) {
    MethodConfig config = rosa_config();
    config.rosa.factors_decay = factors_decay;
    for (const TrainedTensor& tensor : Stages(tiny, config, 1).trained()) {
      const bool is_factor = tensor.name.find(".rosa_") != std::string::npos;
      if (is_factor || tensor.name == "head.classifier.weight") {
        EXPECT_EQ(tensor.decays, is_factor ? factors_decay : true) << tensor.name;
      }
    }
  }
}

TEST(RosaMethod, CutsOnTheHostOnRequest) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = rosa_config();
  const Stages expected(tiny, config, 1);
  config.rosa.svd_device = "cpu";
  const Stages found(tiny, config, 1);
  EXPECT_TRUE(at::equal(found.trained("encoder.1.attention.query.rosa_b"),
                        expected.trained("encoder.1.attention.query.rosa_b")));
}

TinyModel open_gpt2() {
  const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden/gpt2_1";
  return {model::read_backbone(folder, {}), model::open_model_folder(folder)};
}

TEST(RosaMethod, CutsQueryKeyAndValueOfGpt2AsTheOneMatrixTheyAreStoredIn) {
  const TinyModel tiny = open_gpt2();
  const auto width = tiny.backbone.width;
  MethodConfig config{.method = "rosa"};
  config.rosa.rank = 3;
  config.rosa.targets = {"attention.query_key_value", "attention.output"};
  const auto batch = make_batch();
  Stages stages(tiny, config, 2);
  const std::string name = "decoder.0.attention.query_key_value";
  EXPECT_EQ(kept(stages, name + ".weight").size(0), 3 * width);
  EXPECT_EQ(stages.trained(name + ".rosa_a").sizes(), (at::IntArrayRef{3, width}));
  EXPECT_EQ(stages.trained(name + ".rosa_b").sizes(), (at::IntArrayRef{3 * width, 3}));
  EXPECT_TRUE(at::allclose(stages.evaluate(batch), run_bare(tiny, batch), 0, 1e-4));

  for (const std::int64_t event : {1, 2}) {
    disturb(stages);
    const at::Tensor before = stages.evaluate(batch);
    EXPECT_FALSE(at::allclose(before, run_bare(tiny, batch), 0, 1e-2));
    run_event(stages, event);
    EXPECT_TRUE(at::allclose(stages.evaluate(batch), before, 0, 1e-4));
  }
  const auto gradients =
      stages
          .step(batch, training_context(),
                [](const at::Tensor& logits) { return (at::arange(logits.numel()) + 1).sin().view(logits.sizes()); })
          .gradients;
  for (const at::Tensor& rows : gradients.at(name + ".rosa_b").chunk(3)) EXPECT_GT(rows.abs().max().item<double>(), 0);
  std::int64_t found = 0;
  for (const TrainedTensor& tensor : stages.trained()) found += tensor.value.numel();
  EXPECT_EQ(found, count_rosa(config.rosa, tiny.backbone));

  // Merged into the weights of the three linears, the model is the same.
  const at::Tensor expected = stages.evaluate(batch);
  Stages whole(tiny, config, 1);
  for (const TrainedTensor& tensor : stages.trained()) {
    whole.trained(tensor.name).detach().copy_(tensor.value.detach());
    if (!tensor.name.ends_with(".rosa_a")) continue;
    const std::string target = tensor.name.substr(0, tensor.name.size() - std::string(".rosa_a").size());
    kept(whole, target + ".weight").copy_(kept(stages, target + ".weight"));
  }
  Stages full(tiny, {.method = "full"}, 1);
  for (const auto& [weight, value] : merged_weights(*whole.methods.front(), *whole.slices.front())) {
    full.trained(weight).detach().copy_(value);
  }
  EXPECT_TRUE(at::allclose(full.evaluate(batch), expected, 0, 1e-4));
}

TEST(RosaOptions, RefuseToJoinWhatIsStoredApart) {
  const auto error_of_targets = [](const std::vector<std::string>& targets, const model::Backbone& backbone) {
    return config_error([&] { static_cast<void>(count_rosa({.targets = targets}, backbone)); });
  };
  EXPECT_THAT(error_of_targets({"attention.query_key_value"}, plan_tiny({})), HasSubstr("which stores them apart"));
  EXPECT_THAT(error_of_targets({"attention.query_key_value", "attention.key"}, open_gpt2().backbone),
              HasSubstr("each once"));
}

TEST(RosaEvents, ComeBeforeEpochsOrStepsAndAlwaysBeforeTheFirst) {
  const TinyModel tiny = make_tiny({});
  const auto events = [&](std::int64_t every_epochs, std::int64_t every_steps) {
    MethodConfig config = rosa_config();
    config.rosa.every_epochs = every_epochs;
    config.rosa.every_steps = every_steps;
    Stages stages(tiny, config, 1);
    std::vector<std::pair<std::int64_t, std::int64_t>> found;
    for (std::int64_t step = 0; step < 25; ++step) {
      if (const auto event = stages.methods.front()->resampling()->event_before(step, /*steps_per_epoch=*/5)) {
        found.emplace_back(step, *event);
      }
    }
    return found;
  };
  using Pairs = std::vector<std::pair<std::int64_t, std::int64_t>>;
  EXPECT_EQ(events(1, 0), (Pairs{{0, 0}, {5, 1}, {10, 2}, {15, 3}, {20, 4}}));
  EXPECT_EQ(events(2, 0), (Pairs{{0, 0}, {5, 1}, {15, 2}}));  // epochs 1 | 2, 3 | 4, 5
  EXPECT_EQ(events(3, 0), (Pairs{{0, 0}, {10, 1}}));
  EXPECT_EQ(events(0, 0), (Pairs{{0, 0}}));
  EXPECT_EQ(events(1, 7), (Pairs{{0, 0}, {7, 1}, {14, 2}, {21, 3}}));
}

TEST(RosaMethod, GivesGradientsThatFiniteDifferencesConfirm) {
  const at::AutoGradMode with_gradient(true);
  const auto wide = at::TensorOptions(at::kDouble);
  const auto wavy = [&](at::IntArrayRef sizes, double seed) {
    return at::arange(c10::multiply_integers(sizes), wide).mul(1.3).add(seed).sin().view(sizes);
  };
  model::Linear linear(5, 7, /*bias_wanted=*/true);
  linear.weight = wavy({7, 5}, 1);
  linear.bias = wavy({7}, 2);
  auto delta = std::make_shared<RosaDelta>();
  delta->a = wavy({2, 5}, 3).requires_grad_();
  delta->b = wavy({7, 2}, 4).requires_grad_();
  linear.delta = delta;
  at::Tensor x = wavy({4, 5}, 5).requires_grad_();
  const auto loss = [&] { return linear.forward(x, {}).tanh().sum(); };
  const std::vector<at::Tensor> leaves = {delta->a, delta->b, x};
  const auto gradients = torch::autograd::grad({loss()}, leaves);
  const at::NoGradGuard no_grad;
  constexpr double kStep = 1e-6;
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    auto* values = leaves[i].mutable_data_ptr<double>();
    for (std::int64_t e = 0; e < leaves[i].numel(); ++e) {
      const double start = values[e];
      values[e] = start + kStep;
      const double above = loss().item<double>();
      values[e] = start - kStep;
      const double below = loss().item<double>();
      values[e] = start;
      EXPECT_NEAR(gradients[i].view(-1)[e].item<double>(), (above - below) / (2 * kStep), 1e-8) << i << " " << e;
    }
  }
}

TEST(RosaOptions, RefuseTwoSchedules) {
  MethodConfig config = rosa_config();
  config.rosa.every_epochs = 2;
  config.rosa.every_steps = 5;
  EXPECT_THAT(config_error([&] { static_cast<void>(count_trained(config, plan_tiny({}))); }),
              HasSubstr("peft.rosa.every_steps: expected 0 beside peft.rosa.every_epochs=2"));
}

TEST(RosaOptions, RefuseWhatCannotBe) {
  const TinyModel tiny = make_tiny({});
  const auto error_of = [&](const RosaConfig& rosa) {
    return config_error([&] { static_cast<void>(count_trained({.method = "rosa", .rosa = rosa}, tiny.backbone)); });
  };
  EXPECT_THAT(error_of({.rank = 2.5}), HasSubstr("peft.rosa.rank"));
  EXPECT_THAT(error_of({.split = "random_add", .trained_factors = "b"}), HasSubstr("trained_factors"));
  EXPECT_THAT(error_of({.targets = {"attention.q"}}), HasSubstr("peft.rosa.targets"));
  EXPECT_EQ(error_of({}), "");
}

}  // namespace
}  // namespace espalier::peft
