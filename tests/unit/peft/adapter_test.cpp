// SPDX-License-Identifier: Apache-2.0
// The bottleneck, and the adapters made of it, against their equations written out.
#include "peft/adapter.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "common/error.h"
#include "model/dropout.h"
#include "stages.h"

namespace espalier::peft {
namespace {

using ::testing::HasSubstr;

MethodConfig adapter_config(const char* placement) {
  return {.method = "adapter", .adapter = {.placement = placement, .rank = 4}};
}

struct Trained {
  Bottleneck bottleneck;
  std::map<std::string, at::Tensor> weights;
};

Trained make_bottleneck(const BottleneckSpec& spec) {
  Trained made{Bottleneck(spec, {RandomDomain::kAdapter, 3}, model::DropoutSite::kFactor), {}};
  std::vector<TrainedTensor> trained;
  train_bottleneck(made.bottleneck, "a", /*seed=*/5, at::kCPU, trained);
  for (const TrainedTensor& tensor : trained) {
    made.weights.emplace(tensor.name, tensor.value.detach());
  }
  return made;
}

TEST(Bottleneck, IsTheProductOfItsPartsWithWhatItsSpecAdds) {
  for (const bool has_norm : {false, true}) {
    for (const bool has_residual : {false, true}) {
      const BottleneckSpec spec{.width = 6, .rank = 3, .has_norm = has_norm, .has_residual = has_residual};
      auto made = make_bottleneck(spec);
      std::int64_t count = 0;
      for (auto& [name, value] : made.weights) {
        value.copy_(at::arange(value.numel()).view(value.sizes()).sin());
        count += value.numel();
      }
      EXPECT_EQ(count, count_bottleneck(spec));
      const auto& w = made.weights;
      const at::Tensor x = at::arange(24).view({4, 6}).cos();
      at::Tensor read = x;
      if (has_norm) {
        const at::Tensor centred = x - x.mean(-1, true);
        read = centred / (centred.square().mean(-1, true) + 1e-5).sqrt() * w.at("a.norm.weight") + w.at("a.norm.bias");
      }
      const at::Tensor narrow = at::gelu(read.mm(w.at("a.down.weight").t()) + w.at("a.down.bias"));
      at::Tensor expected = narrow.mm(w.at("a.up.weight").t()) + w.at("a.up.bias");
      if (has_residual) {
        expected = expected + x;
      }
      EXPECT_TRUE(at::allclose(made.bottleneck.forward(x, {}), expected, 1e-5, 1e-6));
    }
  }
}

TEST(Bottleneck, ScalesWhatItAdds) {
  auto plain = make_bottleneck({.width = 6, .rank = 3}), scaled = make_bottleneck({.width = 6, .rank = 3, .scale = 4});
  const at::Tensor x = at::arange(24).view({4, 6}).cos();
  EXPECT_TRUE(at::equal(scaled.bottleneck.forward(x, {}), plain.bottleneck.forward(x, {}) * 4));
}

TEST(Bottleneck, DropsBehindItsActivationInTrainingAlone) {
  auto made = make_bottleneck({.width = 64, .rank = 64, .activation = model::Activation::kRelu, .dropout = 0.5});
  made.weights.at("a.down.weight").copy_(at::eye(64));
  made.weights.at("a.up.weight").copy_(at::eye(64));
  const at::Tensor ones = at::ones({4, 64});
  EXPECT_TRUE(at::equal(made.bottleneck.forward(ones, {}), ones));
  const auto context = training_context();
  const at::Tensor mask = model::dropout_mask(
      256, 0.5, model::dropout_key(context, {RandomDomain::kAdapter, 3}, model::DropoutSite::kFactor));
  EXPECT_TRUE(at::equal(made.bottleneck.forward(ones, context), mask.view({4, 64}) * 2.0F));
}

TEST(Bottleneck, StartsFromTheDeviationsOfItsSpec) {
  const auto made =
      make_bottleneck({.width = 200, .rank = 100, .has_norm = true, .down_deviation = 0.5, .up_deviation = 0.02});
  EXPECT_NEAR(made.weights.at("a.down.weight").std().item<double>(), 0.5, 0.01);
  EXPECT_NEAR(made.weights.at("a.up.weight").std().item<double>(), 0.02, 0.0004);
  EXPECT_TRUE(at::equal(made.weights.at("a.down.bias"), at::zeros({100})));
  EXPECT_TRUE(at::equal(made.weights.at("a.up.bias"), at::zeros({200})));
  EXPECT_TRUE(at::equal(made.weights.at("a.norm.weight"), at::ones({200})));
}

TEST(AdapterMethod, DrawsItsMatricesAsPublished) {
  const TinyModel tiny = make_tiny({.width = 64, .num_heads = 4});
  const auto start = [&](const char* placement, const std::string& weight) {
    return Stages(tiny, adapter_config(placement), 1).trained("encoder.1.adapter." + weight).detach();
  };
  // Houlsby et al.: normal of deviation 0.01, truncated at two; the rest of it has 0.88 of that deviation.
  const at::Tensor near_zero = start("houlsby", "after_attention.down.weight");
  EXPECT_NEAR(near_zero.std().item<double>(), 0.0088, 0.001);
  EXPECT_LE(near_zero.abs().max().item<double>(), 0.02);
  const at::Tensor uniform = start("parallel", "parallel.down.weight");
  EXPECT_LE(uniform.abs().max().item<double>(), 1.0 / 8);
  EXPECT_NEAR(uniform.std().item<double>(), 1.0 / 8 / std::sqrt(3.0), 0.005);
  EXPECT_EQ(start("parallel", "parallel.up.weight").abs().max().item<double>(), 0);
}

TEST(AdapterMethod, StartsAtTheBackboneBesideTheFeedForwardAndNearItBehind) {
  const TinyModel tiny = make_tiny({});
  const at::Tensor bare = run_bare(tiny, make_batch());
  for (const int num_stages : {1, 3}) {
    EXPECT_TRUE(at::equal(Stages(tiny, adapter_config("parallel"), num_stages).evaluate(make_batch()), bare));
    const at::Tensor behind = Stages(tiny, adapter_config("houlsby"), num_stages).evaluate(make_batch());
    EXPECT_TRUE(at::allclose(behind, bare, 1e-2, 1e-2));
    EXPECT_FALSE(at::equal(behind, bare));
  }
}

TEST(AdapterMethod, ShiftsWhatItReplacesByItsUpperBias) {
  // Of zero matrices a bias is left: behind a branch it adds to the branch's own.
  const TinyModel tiny = make_tiny({});
  const at::Tensor shift = at::arange(16).sin();
  Stages full(tiny, {.method = "full"}, 1);
  full.trained("encoder.1.attention.output.bias").detach().add_(shift);
  full.trained("encoder.2.feed_forward.down.bias").detach().add_(shift);
  const at::Tensor expected = full.evaluate(make_batch());

  Stages houlsby(tiny, adapter_config("houlsby"), 2);
  for (const TrainedTensor& tensor : houlsby.trained()) {
    if (!tensor.name.starts_with("head.")) {
      tensor.value.detach().zero_();
    }
  }
  houlsby.trained("encoder.1.adapter.after_attention.up.bias").detach().copy_(shift);
  houlsby.trained("encoder.2.adapter.after_feed_forward.up.bias").detach().copy_(shift);
  EXPECT_TRUE(at::allclose(houlsby.evaluate(make_batch()), expected, 1e-5, 1e-5));

  full.trained("encoder.1.attention.output.bias").detach().sub_(shift);
  Stages parallel(tiny, adapter_config("parallel"), 2);
  parallel.trained("encoder.2.adapter.parallel.up.bias").detach().copy_(shift);
  EXPECT_TRUE(at::allclose(parallel.evaluate(make_batch()), full.evaluate(make_batch()), 1e-5, 1e-5));
}

TEST(AdapterMethod, StandsBehindTheCrossAttentionOfDecoderBlocksWhenAsked) {
  const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden/bart_1";
  const TinyModel bart{model::read_backbone(folder, {}), model::open_model_folder(folder)};
  const auto golden = model::open_safetensors(folder / "golden.safetensors");
  model::NamedTensors batch;
  for (const char* name : {"input_ids", "attention_mask", "labels"}) batch[name] = golden->get(name);
  MethodConfig config = adapter_config("houlsby");
  const auto without = count_adapter(config.adapter, bart.backbone);
  config.adapter.cross_attention = true;

  // Of zero matrices the upper bias is left, which adds to the bias of the cross-attention's output.
  Stages full(bart, {.method = "full"}, 1);
  const std::string output_bias = "decoder.1.cross_attention.output.bias";
  const at::Tensor shift = at::arange(full.trained(output_bias).numel()).sin();
  full.trained(output_bias).detach().add_(shift);
  const auto wave = [](const at::Tensor& logits) { return at::arange(logits.numel()).sin().view(logits.sizes()); };
  const Step expected = full.step(batch, {}, wave);
  for (const int num_stages : {1, 3}) {
    Stages stages(bart, config, num_stages);
    std::int64_t count = 0;
    for (const TrainedTensor& tensor : stages.trained()) {
      if (tensor.name.find(".adapter.") == std::string::npos) continue;
      count += tensor.value.numel();
      tensor.value.detach().zero_();
    }
    EXPECT_EQ(count, count_adapter(config.adapter, bart.backbone));
    EXPECT_EQ(count - without, 2 * (2 * shift.numel() * 4 + 4 + shift.numel())) << "two blocks of the decoder";
    const std::string up_bias = "decoder.1.adapter.after_cross_attention.up.bias";
    stages.trained(up_bias).detach().copy_(shift);
    const Step found = stages.step(batch, {}, wave);
    EXPECT_TRUE(at::allclose(found.logits, expected.logits, 1e-5, 1e-5));
    EXPECT_TRUE(at::allclose(found.gradients.at(up_bias), expected.gradients.at(output_bias), 1e-4, 1e-5));
  }
}

TEST(AdapterMethod, TrainsTheNormsOfBlocksWhenAsked) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = adapter_config("houlsby");
  const auto plain = count_adapter(config.adapter, tiny.backbone);
  EXPECT_EQ(plain, 4 * 2 * (2 * 16 * 4 + 4 + 16));
  config.adapter.norms_trained = true;
  EXPECT_EQ(count_adapter(config.adapter, tiny.backbone), plain + 4 * 4 * 16);
  const Stages stages(tiny, config, 1);
  EXPECT_TRUE(stages.trained("encoder.3.feed_forward.norm.weight").requires_grad());
  for (const TrainedTensor& tensor : stages.trained()) {
    EXPECT_NE(tensor.name, "embedding.norm.weight");
  }
}

TEST(AdapterMethod, RefusesWhatDoesNotFit) {
  const TinyModel tiny = make_tiny({});
  const auto error_of = [&](const AdapterConfig& adapter) {
    return config_error([&] { static_cast<void>(Stages(tiny, {.method = "adapter", .adapter = adapter}, 1)); });
  };
  EXPECT_THAT(error_of({.rank = 17}), HasSubstr("expected at most 16"));
  EXPECT_THAT(error_of({.rank = 4, .activation = "tanh"}), HasSubstr("peft.adapter.activation"));
  EXPECT_EQ(error_of({.rank = 16, .activation = "relu"}), "");
  EXPECT_EQ(error_of({.placement = "parallel", .rank = 4, .scale = 4}), "");
  EXPECT_THAT(error_of({.rank = 4, .scale = 4}), HasSubstr("peft.adapter.scale: expected 1"));
  EXPECT_THAT(error_of({.cross_attention = true, .rank = 4}), HasSubstr("without cross-attention (bert)"));
  EXPECT_THAT(error_of({.placement = "parallel", .cross_attention = true, .rank = 4}), HasSubstr("found parallel"));
}

}  // namespace
}  // namespace espalier::peft
