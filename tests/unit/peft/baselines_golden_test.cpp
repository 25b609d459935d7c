// SPDX-License-Identifier: Apache-2.0
// LoRA, BitFit and bottleneck adapters on BERT, and LoRA on GPT-2 with its joint projection: the first step and where
// five steps of AdamW lead equal PyTorch and Hugging Face PEFT, whose numbers tools/make_golden_lora.py and
// tools/make_golden_baselines.py wrote.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "optim/adamw.h"
#include "stages.h"

namespace espalier::peft {
namespace {

// A bias of keys shifts all scores of a query alike: its gradient is zero but for rounding, which AdamW takes for a
// direction. Nothing reads it.
constexpr const char* kWithoutEffect = ".attention.key.bias";

struct BaselineCase {
  const char* name;
  const char* family;
  const char* file;
  /// The numbers were made in double; PyTorch's own fp32 is off by up to 4e-6 of the largest.
  double tolerance;
  MethodConfig config;
};

/// A golden file, read for one case.
class BaselineGolden : public testing::TestWithParam<BaselineCase> {
 protected:
  BaselineGolden() {
    const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden";
    const auto model_folder = folder / (GetParam().family + std::string("_1"));
    tiny_ = {model::read_backbone(model_folder, {}), model::open_model_folder(model_folder)};
    golden_ = model::open_safetensors(folder / GetParam().file / "golden.safetensors");
  }
  [[nodiscard]] at::Tensor number(const std::string& name) const {
    return golden_->get(GetParam().name + std::string(".") + name);
  }
  [[nodiscard]] model::NamedTensors batch(int step) const {
    model::NamedTensors found;
    for (const char* name : {"input_ids", "attention_mask", "token_type_ids", "labels"}) {
      const std::string stored = "batch." + std::to_string(step) + "." + name;
      // A file of several families has batches of each.
      for (const std::string& each : {stored, GetParam().family + ("." + stored)}) {
        if (golden_->contains(each)) found[name] = golden_->get(each);
      }
    }
    return found;
  }
  void expect_close(const at::Tensor& found, const std::string& name) const {
    EXPECT_LT(relative_error(found, number(name)), GetParam().tolerance) << name;
  }
  void expect_first_step(const Step& found, double loss) const {
    expect_close(found.logits, "logits");
    const double expected_loss = number("loss").item<double>();
    EXPECT_NEAR(loss, expected_loss, GetParam().tolerance * expected_loss);
    for (const auto& [name, gradient] : found.gradients) {
      if (name.ends_with(kWithoutEffect)) {
        EXPECT_LT(gradient.abs().max().item<double>(), 1e-5) << name;
        continue;
      }
      expect_close(gradient, "gradient." + name);
    }
  }

  TinyModel tiny_;
  std::unique_ptr<model::WeightSource> golden_;
};

TEST_P(BaselineGolden, FirstStepAndFiveStepsOfAdamWAreThoseOfPyTorch) {
  for (const int num_stages : {1, 3}) {
    SCOPED_TRACE(num_stages);
    Stages stages(tiny_, GetParam().config, num_stages);
    std::vector<optim::Parameter> parameters;
    for (const TrainedTensor& tensor : stages.trained()) {
      tensor.value.detach().copy_(number("start." + tensor.name));
      parameters.push_back({tensor.name, tensor.value, tensor.decays});
    }
    optim::AdamW optimizer({.weight_decay = 0.01}, parameters);
    for (int step = 0; step < 5; ++step) {
      auto inputs = batch(step);
      const auto labels = inputs.extract("labels").mapped();
      double loss = 0;
      const Step found = stages.step(inputs, /*context=*/{}, gradient_of_loss(tiny_.backbone, labels, &loss));
      ASSERT_EQ(found.gradients.size(), parameters.size());
      if (step == 0) expect_first_step(found, loss);
      std::vector<at::Tensor> gradients;
      for (const optim::Parameter& parameter : parameters) gradients.push_back(found.gradients.at(parameter.name));
      optimizer.step(gradients, /*learning_rate=*/1e-3);
    }
    for (const optim::Parameter& parameter : parameters) {
      if (!parameter.name.ends_with(kWithoutEffect)) expect_close(parameter.value, "end." + parameter.name);
    }
  }
}

TEST_P(BaselineGolden, TrainsWhatPyTorchTrains) {
  const std::string prefix = GetParam().name + std::string(".start.");
  std::set<std::string> expected, found;
  for (const std::string& name : golden_->names()) {
    if (name.starts_with(prefix)) expected.insert(name.substr(prefix.size()));
  }
  for (const TrainedTensor& tensor : Stages(tiny_, GetParam().config, /*num_stages=*/1).trained()) {
    found.insert(tensor.name);
  }
  EXPECT_EQ(found, expected);
}

const std::vector<std::string> kEveryLinear = {"attention.query",  "attention.key",   "attention.value",
                                               "attention.output", "feed_forward.up", "feed_forward.down"};

MethodConfig golden_lora(const LoraConfig& lora) {
  return {.method = "lora", .lora = lora};
}

MethodConfig golden_adapter(const AdapterConfig& adapter) {
  return {.method = "adapter", .adapter = adapter};
}

const BaselineCase kBaselineCases[] = {
    {"plain", "bert", "lora_1", 1e-5, golden_lora({.rank = 4, .alpha = 4})},
    {"scaled", "bert", "lora_1", 1e-5, golden_lora({.rank = 3, .alpha = 16})},
    {"everywhere", "bert", "lora_1", 1e-5,
     golden_lora({.rank = 2, .alpha = 6, .rank_stabilized = true, .targets = kEveryLinear})},
    {"gpt2_lora", "gpt2", "baselines_1", 2e-5, golden_lora({.rank = 3, .alpha = 6, .targets = kEveryLinear})},
    {"bitfit", "bert", "baselines_1", 2e-5, {.method = "bitfit"}},
    {"houlsby", "bert", "baselines_1", 2e-5, golden_adapter({.rank = 4, .norms_trained = true})},
    {"parallel", "bert", "baselines_1", 2e-5,
     golden_adapter({.placement = "parallel", .rank = 4, .activation = "relu", .scale = 4})},
};

INSTANTIATE_TEST_SUITE_P(Cases, BaselineGolden, testing::ValuesIn(kBaselineCases),
                         [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace espalier::peft
