// SPDX-License-Identifier: Apache-2.0
// LST on T5 equals an implementation in plain PyTorch, whose numbers tools/make_golden_lst.py wrote.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>

#include "stages.h"

namespace espalier::peft {
namespace {

struct Precision {
  at::ScalarType type;
  double tolerance;
};
// In fp32 the rounding of the backbone's states comes through where a gradient is a small sum of large terms.
constexpr std::array<Precision, 2> kPrecisions = {{{at::kDouble, 1e-5}, {at::kFloat, 1e-4}}};

struct LstCase {
  const char* name;
  const char* model;
  LstConfig lst;
};

class LstGolden : public testing::TestWithParam<LstCase> {};

TEST_P(LstGolden, LogitsLossAndGradientsAreThoseOfPyTorch) {
  const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden";
  const auto model_folder = folder / GetParam().model;
  const TinyModel tiny{model::read_backbone(model_folder, {}), model::open_model_folder(model_folder)};
  const auto inputs = model::open_safetensors(model_folder / "golden.safetensors");
  const auto golden = model::open_safetensors(folder / "lst_1/golden.safetensors");
  const std::string prefix = GetParam().name + std::string(".");
  model::NamedTensors batch;
  for (const char* name : {"input_ids", "attention_mask", "labels"}) {
    if (inputs->contains(name)) batch[name] = inputs->get(name);
  }
  const at::Tensor labels = inputs->get("labels");

  const MethodConfig config{.method = "lst", .lst = GetParam().lst};
  const auto expect_golden = [&](int num_stages, const Precision& precision) {
    Stages stages(tiny, config, num_stages, {.compute_type = precision.type});
    std::size_t num_trained = 0;
    for (const TrainedTensor& tensor : stages.trained()) {
      if (tensor.is_inert) continue;
      tensor.value.detach().copy_(golden->get(prefix + "value." + tensor.name));
      num_trained += tensor.is_copy ? 0 : 1;
    }
    double loss = 0;
    const Step found = stages.step(batch, /*context=*/{}, gradient_of_loss(tiny.backbone, labels, &loss));
    EXPECT_LT(relative_error(found.logits, golden->get(prefix + "logits")), precision.tolerance);
    const double expected_loss = golden->get(prefix + "loss").item<double>();
    EXPECT_NEAR(loss, expected_loss, precision.tolerance * expected_loss);
    EXPECT_EQ(found.gradients.size(), num_trained);
    for (const auto& [name, gradient] : found.gradients) {
      EXPECT_LT(relative_error(gradient, golden->get(prefix + "gradient." + name)), precision.tolerance) << name;
    }
  };
  for (int num_stages = 1; num_stages <= tiny.backbone.num_blocks(); ++num_stages) {
    for (const Precision& precision : kPrecisions) {
      SCOPED_TRACE(testing::Message() << num_stages << " stages, " << precision.type);
      expect_golden(num_stages, precision);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, LstGolden,
                         testing::Values(LstCase{"default", "t5_1", {.reduction = 2, .layers = {1, 2}}},
                                         LstCase{"other",
                                                 "t5_2",
                                                 {.reduction = 2,
                                                  .decoder_layers = {0, 2},
                                                  .gate_temperature = 0.5,
                                                  .fuse = "after",
                                                  .merge_last = true}}),
                         [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace espalier::peft
