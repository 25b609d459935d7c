// SPDX-License-Identifier: Apache-2.0
// Full fine-tuning and the probe; LoRA has a file of its own.
#include "peft/chain_method.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "stages.h"

namespace espalier::peft {
namespace {

TEST(FullMethod, StartsAsTheBackboneAndOwnsItsWeights) {
  const TinyModel tiny = make_tiny({});
  Stages stages(tiny, {.method = "full"}, 2);
  const at::Tensor before = stages.evaluate(make_batch());
  EXPECT_TRUE(at::equal(before, run_bare(tiny, make_batch())));

  stages.trained("encoder.1.feed_forward.up.weight").detach().add_(0.1);
  EXPECT_FALSE(at::equal(stages.evaluate(make_batch()), before)) << "the model must read the trained tensor itself";
  EXPECT_TRUE(at::equal(before, run_bare(tiny, make_batch())));
}

TEST(FullMethod, StartsFromTheStoredValuesInANarrowType) {
  const TinyModel tiny = make_tiny({});
  Stages stages(tiny, {.method = "full"}, 1, {.compute_type = at::kBFloat16});
  const std::string role = "attention.query.weight";
  const model::LayerPlan& layer = tiny.backbone.chain[2];
  const at::Tensor stored = tiny.weights->get(tiny.backbone.family->stored_weight(layer, role).names.front());
  EXPECT_TRUE(at::equal(stages.trained(layer.name + "." + role), stored));
  EXPECT_EQ(stages.evaluate(make_batch()).sizes().vec(), (std::vector<std::int64_t>{3, 3}));
}

TEST(ProbeMethod, SeesTheBackboneWithoutDropout) {
  const TinyModel tiny = make_tiny({.pooling = "mean"});
  Stages stages(tiny, {.method = "probe"}, 2);
  // The mean-pooled head draws no dropout either, so training and evaluation agree bit for bit.
  EXPECT_TRUE(at::equal(stages.step(make_batch(), training_context()).logits, run_bare(tiny, make_batch())));
  EXPECT_EQ(stages.trained().size(), 2U);
}

TEST(ProbeMethod, KeepsNothingBelowTheHead) {
  const TinyModel tiny = make_tiny({});
  Stages stages(tiny, {.method = "probe"}, 2);
  const StageResult result = stages.methods.front()->forward({}, stages.slices.front()->prepare(make_batch()),
                                                             training_context(), /*keeps_pass=*/true);
  EXPECT_EQ(result.pass, nullptr);
}

}  // namespace
}  // namespace espalier::peft
