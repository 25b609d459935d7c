// SPDX-License-Identifier: Apache-2.0
#include "peft/bitfit.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "common/error.h"
#include "stages.h"

namespace espalier::peft {
namespace {

TEST(BitFitMethod, TrainsTheBiasesOfTheBackboneAndNoMatrixOfIt) {
  const TinyModel tiny = make_tiny({});
  std::vector<std::string> expected;
  model::visit_planned_weights(tiny.backbone, [&](const model::LayerPlan& layer, const std::string& role,
                                                  const std::vector<std::int64_t>& /*shape*/) {
    if (layer.kind == model::LayerKind::kHead || role.ends_with("bias")) {
      expected.push_back(layer.name + "." + role);
    }
  });
  std::vector<std::string> found;
  for (const TrainedTensor& tensor : Stages(tiny, {.method = "bitfit"}, 3).trained()) {
    found.push_back(tensor.name);
  }
  EXPECT_EQ(found, expected);
  EXPECT_THAT(found, ::testing::Contains("embedding.norm.bias"));
}

TEST(BitFitMethod, StartsAsTheBackboneAndReadsWhatItTrains) {
  const TinyModel tiny = make_tiny({});
  Stages stages(tiny, {.method = "bitfit"}, 2);
  const at::Tensor before = stages.evaluate(make_batch());
  EXPECT_TRUE(at::equal(before, run_bare(tiny, make_batch())));
  stages.trained("encoder.2.attention.key.bias").detach().add_(0.1);  // shifts all scores of a query alike
  EXPECT_TRUE(at::allclose(stages.evaluate(make_batch()), before, 1e-4, 1e-4));
  stages.trained("encoder.2.attention.value.bias").detach().add_(0.1);
  EXPECT_FALSE(at::allclose(stages.evaluate(make_batch()), before, 1e-4, 1e-4));
}

TEST(BitFitMethod, RefusesBackbonesWithoutBiases) {
  for (const char* family : {"t5_1", "llama_1"}) {
    const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden" / family;
    const TinyModel tiny{model::read_backbone(folder, {}), model::open_model_folder(folder)};
    try {
      static_cast<void>(count_trained({.method = "bitfit"}, tiny.backbone));
      ADD_FAILURE() << family;
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr("peft.method=bitfit"));
      EXPECT_THAT(error.what(), ::testing::HasSubstr(family));
    }
    EXPECT_THROW(Stages(tiny, {.method = "bitfit"}, 1), ConfigError);
  }
}

}  // namespace
}  // namespace espalier::peft
