// SPDX-License-Identifier: Apache-2.0
// LoRA on BERT, its first step and where five steps of AdamW lead, equals Hugging Face PEFT with torch.optim.AdamW,
// whose numbers tools/make_golden_lora.py wrote.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <filesystem>

#include "model/loss.h"
#include "optim/adamw.h"
#include "stages.h"

namespace espalier::peft {
namespace {

constexpr double kLoraTolerance = 1e-5;
constexpr int kNumSteps = 5;
constexpr double kLearningRate = 1e-3;

struct LoraCase {
  const char* name;
  LoraConfig lora;
};

class LoraGolden : public testing::TestWithParam<LoraCase> {};

TEST_P(LoraGolden, FirstStepAndFiveStepsOfAdamWAreThoseOfPeft) {
  const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden";
  const TinyModel tiny{model::read_backbone(folder / "bert_1", {}), model::open_model_folder(folder / "bert_1")};
  const auto golden = model::open_safetensors(folder / "lora_1/golden.safetensors");
  const std::string prefix = GetParam().name + std::string(".");
  MethodConfig config{.method = "lora"};
  config.lora = GetParam().lora;

  for (const int num_stages : {1, 3}) {
    SCOPED_TRACE(num_stages);
    Stages stages(tiny, config, num_stages);
    std::vector<optim::Parameter> parameters;
    for (const TrainedTensor& tensor : stages.trained()) {
      tensor.value.detach().copy_(golden->get(prefix + "start." + tensor.name));
      parameters.push_back({tensor.name, tensor.value, tensor.decays});
    }
    optim::AdamW optimizer({.weight_decay = 0.01}, parameters);
    for (int step = 0; step < kNumSteps; ++step) {
      const auto input = [&](const std::string& name) {
        return golden->get("batch." + std::to_string(step) + "." + name);
      };
      model::NamedTensors batch;
      for (const char* name : {"input_ids", "attention_mask", "token_type_ids"}) batch[name] = input(name);
      double loss = 0;
      const Step found = stages.step(batch, /*context=*/{}, [&](const at::Tensor& logits) {
        const at::AutoGradMode with_gradient(true);
        const auto leaf = logits.detach().requires_grad_();
        const auto value = model::classification_loss(leaf, input("labels"), logits.size(0));
        loss = value.item<double>();
        return torch::autograd::grad({value}, {leaf}).front();
      });
      ASSERT_EQ(found.gradients.size(), parameters.size());
      if (step == 0) {
        EXPECT_LT(relative_error(found.logits, golden->get(prefix + "logits")), kLoraTolerance);
        const double expected_loss = golden->get(prefix + "loss").item<double>();
        EXPECT_NEAR(loss, expected_loss, kLoraTolerance * expected_loss);
        for (const auto& [name, gradient] : found.gradients) {
          EXPECT_LT(relative_error(gradient, golden->get(prefix + "gradient." + name)), kLoraTolerance) << name;
        }
      }
      std::vector<at::Tensor> gradients;
      for (const optim::Parameter& parameter : parameters) gradients.push_back(found.gradients.at(parameter.name));
      optimizer.step(gradients, kLearningRate);
    }
    for (const optim::Parameter& parameter : parameters) {
      EXPECT_LT(relative_error(parameter.value, golden->get(prefix + "end." + parameter.name)), kLoraTolerance)
          << parameter.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, LoraGolden,
    testing::Values(LoraCase{"plain", {.rank = 4, .alpha = 4}}, LoraCase{"scaled", {.rank = 3, .alpha = 16}},
                    LoraCase{"everywhere",
                             {.rank = 2,
                              .alpha = 6,
                              .rank_stabilized = true,
                              .targets = {"attention.query", "attention.key", "attention.value", "attention.output",
                                          "feed_forward.up", "feed_forward.down"}}}),
    [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace espalier::peft
