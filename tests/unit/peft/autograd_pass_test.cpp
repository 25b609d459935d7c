// SPDX-License-Identifier: Apache-2.0
#include "peft/autograd_pass.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "common/error.h"
#include "stages.h"

namespace espalier::peft {
namespace {

std::string describe_case(const MethodConfig& config, int num_stages) {
  return config.method + (config.lst.layers.empty() ? "" : " with dropped layers") +
         ", stages: " + std::to_string(num_stages);
}

TEST(AutogradPass, GivesTheSameBitsForEveryCut) {
  const TinyModel tiny = make_tiny({});
  for (const MethodConfig& config : all_methods()) {
    const Step whole = Stages(tiny, config, 1).step(make_batch(), training_context());
    for (const int num_stages : {2, 3, 4}) {
      SCOPED_TRACE(describe_case(config, num_stages));
      const Step cut = Stages(tiny, config, num_stages).step(make_batch(), training_context());
      EXPECT_TRUE(at::equal(cut.logits, whole.logits));
      ASSERT_EQ(cut.gradients.size(), whole.gradients.size());
      for (const auto& [name, gradient] : whole.gradients) {
        ASSERT_TRUE(cut.gradients.contains(name)) << name;
        EXPECT_TRUE(at::equal(cut.gradients.at(name), gradient)) << name;
      }
    }
  }
}

TEST(AutogradPass, ReachesEveryTrainedTensorThatIsNotInert) {
  const TinyModel tiny = make_tiny({});
  for (const MethodConfig& config : all_methods()) {
    Stages stages(tiny, config, 2);
    // A fresh up-projection is zero, and so would be the gradients of what stands before it.
    for (const TrainedTensor& tensor : stages.trained()) {
      if (tensor.value.dim() > 1 && tensor.value.eq(0).all().item<bool>()) {
        tensor.value.detach().fill_(0.1);
      }
    }
    const Step step = stages.step(make_batch(), training_context());
    for (const TrainedTensor& tensor : stages.trained()) {
      EXPECT_EQ(step.gradients.contains(tensor.name), !tensor.is_inert) << tensor.name;
      // Softmax takes away what a constant adds to all scores of a row: a key's bias has no effect.
      if (!tensor.is_inert && !tensor.name.ends_with("key.bias")) {
        EXPECT_GT(step.gradients.at(tensor.name).abs().max().item<float>(), 0) << tensor.name;
      }
    }
  }
}

TEST(AutogradPass, AgreesWithFiniteDifferencesForEveryMethod) {
  const TinyModel tiny = make_tiny({.dropout = 0});
  for (MethodConfig config : all_methods()) {
    // The backward of a reversible method is held to that of its real recurrence (meft_test); of a probe the first
    // stage has nothing.
    if (config.method == "meft" || config.method == "probe") continue;
    SCOPED_TRACE(describe_case(config, 2));
    Stages stages(tiny, config, 2, {.compute_type = at::kDouble});
    stir(stages, 0.1);
    const bool is_beside = stages.methods.front()->route() == Route::kBeside;
    expect_finite_differences(stages, !is_beside ? "hidden" : config.method == "lst" ? "side.hidden" : "side.delta");
  }
}

TEST(AutogradPass, SendsBackOnlyWhatSomeoneBelowNeeds) {
  const TinyModel tiny = make_tiny({});
  const std::map<std::string, std::vector<std::string>> expected = {
      {"lst", {"side.hidden"}}, {"last", {"side.delta"}}, {"lora", {"hidden"}},
      {"rosa", {"hidden"}},     {"full", {"hidden"}},     {"probe", {}},
      {"adapter", {"hidden"}},  {"bitfit", {"hidden"}},   {"meft", {"stream_1", "stream_2"}},
      {"prompt", {"hidden"}}};
  for (const MethodConfig& config : all_methods()) {
    for (const auto& names : Stages(tiny, config, 3).step(make_batch(), training_context()).sent_back) {
      EXPECT_EQ(names, expected.at(config.method)) << config.method;
    }
  }
}

TEST(AutogradPass, NeedsNoGradientBelowTheFirstTrainedLayer) {
  const TinyModel tiny = make_tiny({});
  const auto needs_gradient = [&](const std::string& method, int first_layer) {
    const Stages stages(tiny, {.method = method, .lora = {.rank = 2}}, 1);
    return stages.methods.front()->plan_carry(first_layer, {2, 8}).front().needs_gradient;
  };
  EXPECT_TRUE(needs_gradient("full", 1));
  EXPECT_FALSE(needs_gradient("lora", 1));
  EXPECT_TRUE(needs_gradient("lora", 2));
  EXPECT_FALSE(needs_gradient("probe", 5));
}

TEST(AutogradPass, LeavesFrozenWeightsAlone) {
  const TinyModel tiny = make_tiny({});
  for (const MethodConfig& config : all_methods()) {
    Stages stages(tiny, config, 2);
    std::map<std::string, at::Tensor> before;
    const auto visit_frozen = [&](const auto& visit) {
      for (const auto& slice : stages.slices) {
        slice->visit_weights([&](const std::string& name, const at::Tensor& slot, const std::vector<std::int64_t>&) {
          if (!slot.requires_grad()) {
            visit(name, slot);
          }
        });
      }
    };
    visit_frozen([&](const std::string& name, const at::Tensor& slot) { before[name] = slot.clone(); });
    for (int i = 0; i < 3; ++i) {
      const Step step = stages.step(make_batch(), training_context());
      for (const TrainedTensor& tensor : stages.trained()) {
        if (const auto gradient = step.gradients.find(tensor.name); gradient != step.gradients.end()) {
          tensor.value.detach().sub_(gradient->second, 0.1);
        }
        EXPECT_FALSE(tensor.value.grad().defined()) << tensor.name;
      }
    }
    EXPECT_EQ(before.empty(), config.method == "full");
    visit_frozen([&](const std::string& name, const at::Tensor& slot) {
      EXPECT_TRUE(at::equal(slot, before.at(name))) << name;
      EXPECT_FALSE(slot.grad().defined()) << name;
    });
  }
}

TEST(AutogradPass, LowersTheLossAlongItsGradients) {
  TinyConfig without_dropout;
  without_dropout.dropout = 0;
  const TinyModel tiny = make_tiny(without_dropout);
  for (const MethodConfig& config : all_methods()) {
    Stages stages(tiny, config, 2);
    const Step step = stages.step(make_batch(), {});
    double squared_norm = 0;
    for (const auto& [name, gradient] : step.gradients) {
      squared_norm += gradient.square().sum().item<double>();
    }
    const double rate = 1e-3 / squared_norm;
    for (const TrainedTensor& tensor : stages.trained()) {
      if (const auto gradient = step.gradients.find(tensor.name); gradient != step.gradients.end()) {
        tensor.value.detach().sub_(gradient->second, rate);
      }
    }
    // To first order the loss falls by rate * |gradient|^2.
    EXPECT_NEAR(loss_of(step.logits) - loss_of(stages.evaluate(make_batch())), 1e-3, 2e-4) << config.method;
  }
}

TEST(AutogradPass, RunsOnce) {
  const TinyModel tiny = make_tiny({});
  Stages stages(tiny, {.method = "probe"}, 1);
  StageResult result = stages.methods.front()->forward({}, stages.slices.front()->prepare(make_batch()),
                                                       training_context(), /*keeps_pass=*/true);
  const model::Carry gradients{{"logits", at::ones({3, 3})}};
  const GradientSink sink = [](int, const at::Tensor&) {};
  EXPECT_THROW(result.pass->backward({}, sink), InternalError);
  result.pass->backward(gradients, sink);
  EXPECT_THROW(result.pass->backward(gradients, sink), InternalError);
}

}  // namespace
}  // namespace espalier::peft
