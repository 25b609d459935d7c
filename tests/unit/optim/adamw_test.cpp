// SPDX-License-Identifier: Apache-2.0
// The oracle is AdamW written out in double, one scalar at a time, as the paper has it.
#include "optim/adamw.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "common/error.h"

namespace espalier::optim {
namespace {

/// Different on every call with another seed; no global generator.
at::Tensor wavy(at::IntArrayRef shape, double seed) {
  std::int64_t num_elements = 1;
  for (const std::int64_t size : shape) num_elements *= size;
  return at::arange(num_elements, at::kDouble).mul(1.7).add(seed).sin().to(at::kFloat).reshape(shape);
}

std::vector<Parameter> some_parameters() {
  return {{"dense.weight", wavy({3, 5}, 1), true},
          {"dense.bias", wavy({3}, 2), false},
          {"side.gate", wavy({}, 3), false},
          {"side.weight", wavy({70}, 4), true}};
}

std::vector<at::Tensor> gradients_of_step(const std::vector<Parameter>& parameters, int step) {
  std::vector<at::Tensor> gradients;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    gradients.push_back(wavy(parameters[i].value.sizes(), 10.0 * step + static_cast<double>(i)));
  }
  return gradients;
}

class HandWrittenAdamW {
 public:
  HandWrittenAdamW(const OptimizerConfig& config, const Parameter& parameter)
      : config_(config), decay_(parameter.decays ? config.weight_decay : 0), value_(parameter.value.to(at::kDouble)) {
    mean_.resize(static_cast<std::size_t>(value_.numel()));
    square_.resize(mean_.size());
  }
  void step(const at::Tensor& gradient, double learning_rate) {
    ++num_steps_;
    const at::Tensor flat = gradient.flatten().to(at::kDouble);
    for (std::size_t i = 0; i < mean_.size(); ++i) {
      const double g = flat.data_ptr<double>()[i];
      double& w = value_.data_ptr<double>()[i];
      w -= learning_rate * decay_ * w;
      mean_[i] = config_.beta1 * mean_[i] + (1 - config_.beta1) * g;
      square_[i] = config_.beta2 * square_[i] + (1 - config_.beta2) * g * g;
      const double mean_hat = mean_[i] / (1 - std::pow(config_.beta1, num_steps_));
      const double square_hat = square_[i] / (1 - std::pow(config_.beta2, num_steps_));
      w -= learning_rate * mean_hat / (std::sqrt(square_hat) + config_.epsilon);
    }
  }
  [[nodiscard]] at::Tensor value() const { return value_.to(at::kFloat); }

 private:
  OptimizerConfig config_;
  double decay_;
  at::Tensor value_;
  std::vector<double> mean_, square_;
  int num_steps_ = 0;
};

TEST(AdamW, EqualsTheUpdateWrittenOutByHandWithDecayOnTheDecayingGroupOnly) {
  OptimizerConfig config;
  config.weight_decay = 0.1;
  config.beta1 = 0.8;
  const auto parameters = some_parameters();
  std::vector<HandWrittenAdamW> oracles;
  for (const Parameter& parameter : parameters) oracles.emplace_back(config, parameter);
  AdamW optimizer(config, parameters);
  for (int step = 0; step < 7; ++step) {
    const double learning_rate = 0.05 / (step + 1);
    const auto gradients = gradients_of_step(parameters, step);
    optimizer.step(gradients, learning_rate);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      oracles[i].step(gradients[i], learning_rate);
      EXPECT_TRUE(at::allclose(parameters[i].value, oracles[i].value(), /*rtol=*/1e-5, /*atol=*/1e-6))
          << parameters[i].name << " after step " << step;
    }
  }
  EXPECT_EQ(optimizer.num_steps(), 7);
}

TEST(AdamW, UpdatesALeafThatRequiresGradInPlace) {
  auto parameters = some_parameters();
  for (Parameter& parameter : parameters) parameter.value.requires_grad_(true);
  const at::Tensor before = parameters[0].value.detach().clone();
  const void* storage = parameters[0].value.data_ptr();
  AdamW optimizer({}, parameters);
  optimizer.step(gradients_of_step(parameters, 0), 0.1);
  EXPECT_EQ(parameters[0].value.data_ptr(), storage);
  EXPECT_TRUE(parameters[0].value.requires_grad());
  EXPECT_FALSE(at::equal(parameters[0].value.detach(), before));
}

TEST(AdamW, ContinuesWithEqualBitsFromStateCopiedInPlace) {
  OptimizerConfig config;
  config.weight_decay = 0.01;
  const auto whole = some_parameters();
  AdamW uninterrupted(config, whole);
  for (int step = 0; step < 4; ++step) uninterrupted.step(gradients_of_step(whole, step), 0.1);

  const auto resumed = some_parameters();
  AdamW second(config, resumed);
  for (std::size_t i = 0; i < whole.size(); ++i) resumed[i].value.copy_(whole[i].value);
  const auto saved = uninterrupted.state();
  const auto live = second.state();
  ASSERT_EQ(live.size(), 2 * whole.size());
  for (const auto& [name, tensor] : live) at::Tensor(tensor).copy_(saved.at(name));
  second.set_num_steps(uninterrupted.num_steps());

  for (int step = 4; step < 9; ++step) {
    uninterrupted.step(gradients_of_step(whole, step), 0.05);
    second.step(gradients_of_step(whole, step), 0.05);
  }
  for (std::size_t i = 0; i < whole.size(); ++i) {
    EXPECT_TRUE(at::equal(whole[i].value, resumed[i].value)) << whole[i].name;
  }
  for (const auto& [name, tensor] : uninterrupted.state()) EXPECT_TRUE(at::equal(tensor, live.at(name))) << name;
}

TEST(AdamW, GivesAParameterEqualBitsWhateverOthersShareItsRank) {
  const auto together = some_parameters();
  AdamW all({}, together);
  for (int step = 0; step < 3; ++step) all.step(gradients_of_step(together, step), 0.1);
  for (std::size_t i = 0; i < together.size(); ++i) {
    const std::vector<Parameter> alone = {some_parameters()[i]};
    AdamW one({}, alone);
    for (int step = 0; step < 3; ++step) one.step({gradients_of_step(together, step)[i]}, 0.1);
    EXPECT_TRUE(at::equal(alone[0].value, together[i].value)) << together[i].name;
  }
}

TEST(AdamW, RestartsNamedParametersAsIfTheyWereNewAndLeavesTheOthers) {
  const auto parameters = some_parameters();
  std::vector<HandWrittenAdamW> oracles;
  for (const Parameter& parameter : parameters) oracles.emplace_back(OptimizerConfig{}, parameter);
  AdamW optimizer({}, parameters);
  for (int step = 0; step < 6; ++step) {
    if (step == 2 || step == 4) {
      optimizer.restart({"dense.weight", "side.gate", "another.stage"});
      for (const std::size_t i : {0, 2}) oracles[i] = HandWrittenAdamW({}, parameters[i]);
    }
    const auto gradients = gradients_of_step(parameters, step);
    optimizer.step(gradients, 0.05);
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      oracles[i].step(gradients[i], 0.05);
      EXPECT_TRUE(at::allclose(parameters[i].value, oracles[i].value(), 1e-5, 1e-6))
          << parameters[i].name << " after step " << step;
    }
  }
  EXPECT_EQ(optimizer.num_steps(), 6);
}

TEST(AdamW, KeepsTwoMomentsPerTrainedElementAndNothingElse) {
  AdamW optimizer({}, some_parameters());
  EXPECT_EQ(optimizer.state_bytes(), 2 * 4 * (15 + 3 + 1 + 70));
  EXPECT_EQ(AdamW({}, {}).state_bytes(), 0);
}

TEST(AdamW, WithoutParametersCountsItsStepsLikeEveryOtherStage) {
  AdamW optimizer({}, {});
  optimizer.step({}, 0.1);
  EXPECT_EQ(optimizer.num_steps(), 1);
}

TEST(AdamW, RefusesAMissingGradientByName) {
  const auto parameters = some_parameters();
  AdamW optimizer({}, parameters);
  auto gradients = gradients_of_step(parameters, 0);
  gradients[1] = at::Tensor();
  try {
    optimizer.step(gradients, 0.1);
    FAIL();
  } catch (const InternalError& error) {
    EXPECT_NE(std::string(error.what()).find("dense.bias"), std::string::npos) << error.what();
  }
}

TEST(LearningRate, RisesFromZeroAndFallsLinearlyToZero) {
  OptimizerConfig config;
  config.learning_rate = 2.0;
  config.warmup_steps = 4;
  const std::vector<double> expected = {0,           0.5,         1,           1.5,     2, 2 * 5.0 / 6,
                                        2 * 4.0 / 6, 2 * 3.0 / 6, 2 * 2.0 / 6, 2 / 6.0, 0};
  for (std::size_t step = 0; step < expected.size(); ++step) {
    EXPECT_NEAR(learning_rate_at(config, static_cast<std::int64_t>(step), 10), expected[step], 1e-15) << step;
  }
  EXPECT_EQ(learning_rate_at(config, 11, 10), 0);
}

TEST(LearningRate, FollowsHalfACosineAfterTheWarmUp) {
  OptimizerConfig config;
  config.learning_rate = 2.0;
  config.schedule = "cosine";
  config.warmup_steps = 2;
  EXPECT_EQ(learning_rate_at(config, 1, 10), 1.0);
  for (int step = 2; step <= 10; ++step) {
    EXPECT_NEAR(learning_rate_at(config, step, 10), 1 + std::cos(std::numbers::pi * (step - 2) / 8.0), 1e-15) << step;
  }
}

TEST(LearningRate, StaysConstantAfterAWarmUpGivenAsAFractionRoundedUp) {
  OptimizerConfig config;
  config.schedule = "constant";
  config.warmup_fraction = 0.06;
  EXPECT_LT(learning_rate_at(config, 6, 101), config.learning_rate);  // ceil(6.06) = 7 warm-up steps
  EXPECT_EQ(learning_rate_at(config, 7, 101), config.learning_rate);
  EXPECT_EQ(learning_rate_at(config, 101, 101), config.learning_rate);
  config.warmup_fraction = 0;
  EXPECT_EQ(learning_rate_at(config, 0, 101), config.learning_rate);
}

TEST(LearningRate, RefusesAnUnknownScheduleByName) {
  OptimizerConfig config;
  config.schedule = "steps";
  config.warmup_steps = 0;
  EXPECT_THROW(learning_rate_at(config, 0, 10), ConfigError);
}

TEST(Norm, IsTheSumInDoubleForAnyNumberOfThreads) {
  std::vector<at::Tensor> gradients = {wavy({300007}, 1), wavy({7, 13}, 2).t(), at::zeros({0}), at::full({}, 3.0f)};
  std::vector<long double> oracle;
  for (const at::Tensor& gradient : gradients) {
    const at::Tensor flat = gradient.flatten();
    long double sum = 0;
    for (std::int64_t i = 0; i < flat.numel(); ++i) sum += std::pow((long double)flat.data_ptr<float>()[i], 2);
    oracle.push_back(sum);
  }
  const int num_threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one_thread = squared_norms(gradients);
  at::set_num_threads(3);
  const auto three_threads = squared_norms(gradients);
  at::set_num_threads(num_threads);
  EXPECT_EQ(one_thread, three_threads);
  for (std::size_t i = 0; i < oracle.size(); ++i) {
    EXPECT_NEAR(one_thread[i], static_cast<double>(oracle[i]), 1e-12 * static_cast<double>(oracle[i])) << i;
  }
}

TEST(Norm, DoesNotOverflowWhereFloatsWould) {
  EXPECT_NEAR(combine_norm(squared_norms({at::full({4}, 1e30f)})), 2e30, 1e24);
}

TEST(Norm, SaysWhenAGradientIsNotFinite) {
  at::Tensor gradient = at::ones({9});
  gradient[8].fill_(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(std::isnan(combine_norm(squared_norms({at::ones({2}), gradient}))));
}

TEST(Clip, ScalesAllGradientsToTheNormOnlyWhenItIsExceeded) {
  std::vector<at::Tensor> gradients = {at::full({1}, 3.0f), at::full({1}, 4.0f)};
  const double norm = combine_norm(squared_norms(gradients));
  EXPECT_EQ(norm, 5);
  clip_by_norm(gradients, norm, 6);
  clip_by_norm(gradients, norm, 0);
  EXPECT_EQ(gradients[0].item<float>(), 3.0f);
  EXPECT_EQ(gradients[1].item<float>(), 4.0f);
  clip_by_norm(gradients, norm, 1);
  EXPECT_FLOAT_EQ(gradients[0].item<float>(), 0.6f);
  EXPECT_FLOAT_EQ(gradients[1].item<float>(), 0.8f);
}

TEST(OptimizerOptions, AreDeclaredUnderOneSectionAndCheckTheirRanges) {
  OptimizerConfig config;
  OptionTable table;
  describe(table, config);
  table.read_flags({"--optimizer.learning_rate=0.5", "--optimizer.schedule", "cosine", "--optimizer.warmup_steps=12"});
  EXPECT_EQ(config.learning_rate, 0.5);
  EXPECT_EQ(config.schedule, "cosine");
  EXPECT_EQ(config.warmup_steps, 12);
  EXPECT_THROW(table.read_flags({"--optimizer.beta1=1"}), ConfigError);
  EXPECT_THROW(table.read_flags({"--optimizer.epsilon=0"}), ConfigError);
  EXPECT_THROW(table.read_flags({"--optimizer.schedule=steps"}), ConfigError);
}

}  // namespace
}  // namespace espalier::optim
