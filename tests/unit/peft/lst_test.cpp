// SPDX-License-Identifier: Apache-2.0
// B batch, T tokens, D backbone width, S side width
#include "peft/lst.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "common/error.h"
#include "model/dropout.h"
#include "stages.h"

namespace espalier::peft {
namespace {

using ::testing::HasSubstr;

MethodConfig lst_config() {
  return {.method = "lst", .lst = {.reduction = 4}};
}

TinyConfig without_dropout() {
  TinyConfig config;
  config.dropout = 0;
  return config;
}

std::string lst_error(const LstConfig& config) {
  return config_error([&] { static_cast<void>(plan_lst(config, plan_tiny({}))); });
}

/// The equations of docs/methods/lst.md with plain operations, reading the trained tensors by name.
class ByTheBook {
 public:
  ByTheBook(const Stages& stages, const model::NamedTensors& batch) : stages_(stages) {
    const at::Tensor is_padding = batch.at("attention_mask").eq(0).unsqueeze(1).unsqueeze(1);
    bias_ = at::zeros({is_padding.size(0), 1, 1, is_padding.size(3)}).masked_fill(is_padding, -1e9);
  }

  /// `hidden`: output of the embedding and of every block.
  at::Tensor logits(const std::vector<at::Tensor>& hidden, const LstConfig& config, const std::vector<int>& kept) {
    at::Tensor side = linear("lst.first", hidden[0]);
    for (const int i : kept) {
      const std::string name = "lst.encoder." + std::to_string(i);
      if (config.gate != "one") {
        const at::Tensor ladder = linear(name + ".down", hidden[static_cast<std::size_t>(i) + 1]);
        if (config.gate == "none") {
          side = side + ladder;
        } else {
          const at::Tensor gate = at::sigmoid(stages_.trained(name + ".gate") / config.gate_temperature);
          side = gate * side + (1 - gate) * ladder;
        }
      }
      side = block(name + ".block", side);
    }
    const at::Tensor pooled = linear("lst.up", side).select(1, 0);
    return linear("head.classifier", at::tanh(linear("head.dense", pooled)));
  }

 private:
  at::Tensor linear(const std::string& name, const at::Tensor& x) {
    return at::linear(x, stages_.trained(name + ".weight"), stages_.trained(name + ".bias"));
  }
  at::Tensor norm(const std::string& name, const at::Tensor& x) {
    return at::layer_norm(x, {x.size(-1)}, stages_.trained(name + ".weight"), stages_.trained(name + ".bias"), 1e-12);
  }
  at::Tensor block(const std::string& name, const at::Tensor& x) {
    const auto heads = [&](const std::string& role) {
      return linear(name + ".attention." + role, x).unflatten(-1, {2, -1}).transpose(1, 2);  // [B, H, T, W]
    };
    const at::Tensor q = heads("query"), k = heads("key"), v = heads("value");
    const at::Tensor scores = q.matmul(k.transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(-1))) + bias_;
    const at::Tensor mixed = at::softmax(scores, -1).matmul(v).transpose(1, 2).flatten(2);
    const at::Tensor middle = norm(name + ".attention.norm", x + linear(name + ".attention.output", mixed));
    const at::Tensor inner = at::gelu(linear(name + ".feed_forward.up", middle));
    return norm(name + ".feed_forward.norm", middle + linear(name + ".feed_forward.down", inner));
  }

  const Stages& stages_;
  at::Tensor bias_;
};

TEST(LstNetwork, ComputesItsEquations) {
  const TinyModel tiny = make_tiny({});
  std::vector<at::Tensor> hidden;
  static_cast<void>(run_bare(tiny, make_batch(), {}, &hidden));
  for (const char* gate : {"learned", "one", "none"}) {
    for (const bool drops_layers : {false, true}) {
      SCOPED_TRACE(std::string(gate) + (drops_layers ? ", layers dropped" : ""));
      MethodConfig config = lst_config();
      config.lst.gate = gate;
      config.lst.gate_temperature = 0.2;
      if (drops_layers) {
        config.lst.layers = {1, 2};
      }
      Stages stages(tiny, config, 2);
      stir(stages, 0.2);
      const std::vector<int> kept = drops_layers ? std::vector<int>{1, 2} : std::vector<int>{0, 1, 2, 3};
      const at::Tensor expected = ByTheBook(stages, make_batch()).logits(hidden, config.lst, kept);
      EXPECT_TRUE(at::allclose(stages.evaluate(make_batch()), expected, 1e-4, 1e-5));
    }
  }
}

TEST(LstNetwork, IsTheBackboneWhenTheSideNetworkIsItsCopy) {
  const TinyModel tiny = make_tiny(without_dropout());
  MethodConfig config = lst_config();
  config.lst.reduction = 1;
  config.lst.gate = "one";
  Stages stages(tiny, config, 2);
  for (const char* name : {"lst.first.weight", "lst.up.weight"}) {
    stages.trained(name).detach().copy_(at::eye(16));
  }
  const at::Tensor logits = stages.step(make_batch(), training_context()).logits;
  EXPECT_TRUE(at::allclose(logits, run_bare(tiny, make_batch()), 0, 1e-5));
}

TEST(LstNetwork, StartsWithHalfOpenGatesAndSmallProjections) {
  const TinyModel tiny = make_tiny({});
  for (const TrainedTensor& tensor : Stages(tiny, lst_config(), 1).trained()) {
    if (tensor.name.ends_with(".gate")) {
      EXPECT_EQ(at::sigmoid(tensor.value / 0.1).item<float>(), 0.5F) << tensor.name;
    } else if (tensor.name.ends_with(".down.weight") && tensor.name.find("block") == std::string::npos) {
      EXPECT_NEAR(tensor.value.square().mean().sqrt().item<double>(), 0.01, 0.004) << tensor.name;
    } else if (tensor.name == "lst.up.bias" || tensor.name == "lst.first.bias") {
      EXPECT_EQ(tensor.value.abs().max().item<float>(), 0) << tensor.name;
    }
  }
}

TEST(LstNetwork, StartsItsBlocksPrunedOrAtRandom) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = lst_config();
  const std::string weight = "lst.encoder.1.block.feed_forward.up.weight";
  const at::Tensor pruned = Stages(tiny, config, 1).trained(weight);
  const at::Tensor backbone = tiny.weights->get(
      tiny.backbone.family->stored_weight(tiny.backbone.chain[2], "feed_forward.up.weight").names.front());
  for (const float value : std::vector<float>(pruned.data_ptr<float>(), pruned.data_ptr<float>() + pruned.numel())) {
    EXPECT_TRUE(backbone.eq(value).any().item<bool>()) << value;
  }
  EXPECT_GT(pruned.abs().mean().item<float>(), backbone.abs().mean().item<float>()) << "the largest rows must be kept";

  config.lst.side_initial = "random";
  const Stages random(tiny, config, 1);
  EXPECT_NEAR(random.trained(weight).square().mean().sqrt().item<double>(), 0.02, 0.008);
  EXPECT_TRUE(at::equal(random.trained("lst.encoder.1.block.attention.norm.weight"), at::ones({4})));
  EXPECT_TRUE(at::equal(random.trained("lst.encoder.1.block.attention.query.bias"), at::zeros({4})));
}

TEST(LstNetwork, PrunesHeadByHeadWhenAsked) {
  constexpr std::size_t kBlocks = 12;  // enough that chance does not keep as many of both heads in each
  const TinyModel tiny = make_tiny({.num_blocks = kBlocks});
  // Rows of the first of two heads that each block keeps, of four; their biases tell them apart.
  const auto rows_of_first_head = [&](bool by_head) {
    MethodConfig config = lst_config();
    config.lst.prune_by_head = by_head;
    const Stages stages(tiny, config, 1);
    std::vector<std::int64_t> counts;
    for (std::size_t block = 0; block < kBlocks; ++block) {
      const std::string role = "attention.query.bias";
      const at::Tensor kept = stages.trained("lst.encoder." + std::to_string(block) + ".block." + role);  // [4]
      const at::Tensor all = tiny.weights->get(
          tiny.backbone.family->stored_weight(tiny.backbone.chain[block + 1], role).names.front());  // [16]
      counts.push_back(kept.unsqueeze(1).eq(all.narrow(0, 0, 8)).any(1).sum().item<std::int64_t>());
    }
    return counts;
  };
  EXPECT_EQ(rows_of_first_head(true), std::vector<std::int64_t>(kBlocks, 2));
  EXPECT_NE(rows_of_first_head(false), std::vector<std::int64_t>(kBlocks, 2));
}

TEST(LstNetwork, GivesADroppedLayerNothingButAnInertGate) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = lst_config();
  config.lst.layers = {1, 3};
  int num_inert = 0;
  for (const TrainedTensor& tensor : Stages(tiny, config, 2).trained()) {
    if (tensor.name.starts_with("lst.encoder.0.") || tensor.name.starts_with("lst.encoder.2.")) {
      EXPECT_TRUE(tensor.name.ends_with(".gate")) << tensor.name;
      EXPECT_TRUE(tensor.is_inert) << tensor.name;
      ++num_inert;
    } else {
      EXPECT_FALSE(tensor.is_inert) << tensor.name;
    }
  }
  EXPECT_EQ(num_inert, 2);
}

TEST(LstNetwork, SendsTheBackboneNoFurtherThanTheLastLadder) {
  const TinyModel tiny = make_tiny({});
  const auto names = [&](const LstConfig& lst, int first_layer) {
    std::vector<std::string> found;
    for (const auto& entry :
         Stages(tiny, {.method = "lst", .lst = lst}, 1).methods.front()->plan_carry(first_layer, {2, 8})) {
      found.push_back(entry.name);
      EXPECT_EQ(entry.needs_gradient, entry.name == "side.hidden");
    }
    return found;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names({.reduction = 4}, 4), (Names{"hidden", "side.hidden"}));
  EXPECT_EQ(names({.reduction = 4, .layers = {0, 1}}, 2), (Names{"hidden", "side.hidden"}));
  EXPECT_EQ(names({.reduction = 4, .layers = {0, 1}}, 3), (Names{"side.hidden"}));
  EXPECT_EQ(names({.reduction = 4, .gate = "one"}, 1), (Names{"side.hidden"}));
}

TEST(LstNetwork, DrawsTheBackbonesDropoutOnlyWhenAsked) {
  const TinyModel tiny = make_tiny({});
  const auto tap_gradient = [&](bool has_backbone_dropout, std::uint64_t step) {
    MethodConfig config = lst_config();
    config.lst.backbone_dropout = has_backbone_dropout;
    Stages stages(tiny, config, 2);
    model::ForwardContext context = training_context();
    context.key.step = step;
    // The state of the backbone that crosses the boundary.
    return stages.methods.front()->forward({}, stages.slices.front()->prepare(make_batch()), context, true).outgoing;
  };
  EXPECT_TRUE(at::equal(tap_gradient(false, 1).at("hidden"), tap_gradient(false, 2).at("hidden")));
  EXPECT_FALSE(at::equal(tap_gradient(true, 1).at("hidden"), tap_gradient(true, 2).at("hidden")));
  EXPECT_FALSE(at::equal(tap_gradient(false, 1).at("side.hidden"), tap_gradient(false, 2).at("side.hidden")));
}

TEST(LstNetwork, GivesTheBackboneTheDropoutItHasByItself) {
  const TinyModel tiny = make_tiny({});
  Stages lst(tiny, lst_config(), 2), lora(tiny, {.method = "lora", .lora = {.rank = 2}}, 2);
  const auto hidden = [](Stages& stages) {
    const auto inputs = stages.slices.front()->prepare(make_batch());
    return stages.methods.front()->forward({}, inputs, training_context(), /*keeps_pass=*/true).outgoing.at("hidden");
  };
  EXPECT_TRUE(at::equal(hidden(lst), hidden(lora)));
}

TEST(LstNetwork, DropsWhatItReadsFromTheEmbeddingByAMaskOfItsOwn) {
  const TinyModel tiny = make_tiny({});
  std::vector<at::Tensor> hidden;
  static_cast<void>(run_bare(tiny, make_batch(), {}, &hidden));
  MethodConfig config = lst_config();
  config.lst.layers = {2, 3};  // none on the first stage
  Stages stages(tiny, config, 2);
  const model::Carry outgoing =
      stages.methods.front()
          ->forward({}, stages.slices.front()->prepare(make_batch()), training_context(), true)
          .outgoing;
  const auto key = model::dropout_key(training_context(), {RandomDomain::kSide, 0}, model::DropoutSite::kSideInput);
  const at::Tensor expected = at::linear(model::dropout(hidden[0], 0.1, key), stages.trained("lst.first.weight"),
                                         stages.trained("lst.first.bias"));
  EXPECT_TRUE(at::allclose(outgoing.at("side.hidden"), expected, 1e-5, 1e-6));
}

TEST(LstNetwork, DropsItsStateBeforeTheUpProjection) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = lst_config();
  config.lst.layers = {0};  // none on the last stage
  Stages stages(tiny, config, 2);
  stir(stages, 0.2);
  const at::Tensor side = at::arange(3 * 8 * 4, at::kFloat).view({3, 8, 4}).sin();
  const at::Tensor logits =
      stages.methods.back()
          ->forward({{"side.hidden", side}}, stages.slices.back()->prepare(make_batch()), training_context(),
                    /*keeps_pass=*/false)
          .outgoing.at("logits");
  const auto linear = [&](const std::string& name, const at::Tensor& x) {
    return at::linear(x, stages.trained(name + ".weight"), stages.trained(name + ".bias"));
  };
  const auto drop = [](const at::Tensor& x, RandomDomain domain, model::DropoutSite site) {
    return model::dropout(x.contiguous(), 0.1, model::dropout_key(training_context(), {domain, 5}, site));
  };
  const at::Tensor read = drop(side.narrow(1, 0, 1), RandomDomain::kSide, model::DropoutSite::kSideOutput).select(1, 0);
  const at::Tensor pooled = at::tanh(linear("head.dense", linear("lst.up", read)));
  const at::Tensor expected =
      linear("head.classifier", drop(pooled, RandomDomain::kHead, model::DropoutSite::kClassifier));
  EXPECT_TRUE(at::allclose(logits, expected, 1e-5, 1e-5));
}

TEST(LstNetwork, AgreesWithFiniteDifferences) {
  const TinyModel tiny = make_tiny({.num_blocks = 3, .dropout = 0});
  // Two stages: the state that crosses is in double, where the head would compute in fp32.
  Stages stages(tiny, lst_config(), 2, {.compute_type = at::kDouble});
  stir(stages, 0.2);
  expect_finite_differences(stages, "side.hidden");
}

TEST(LstNetwork, KeepsItsSideNetworkInFp32BesideANarrowBackbone) {
  const TinyModel tiny = make_tiny(without_dropout());
  Stages narrow(tiny, lst_config(), 2, {.compute_type = at::kBFloat16}), wide(tiny, lst_config(), 2);
  const Step step = narrow.step(make_batch(), training_context());
  const Step expected = wide.step(make_batch(), training_context());
  EXPECT_EQ(step.logits.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::allclose(step.logits, expected.logits, 0.05, 0.05));
  EXPECT_EQ(step.gradients.size(), expected.gradients.size());
  for (const auto& entry : narrow.methods.front()->plan_carry(2, {2, 8})) {
    EXPECT_EQ(entry.dtype, entry.name == "side.hidden" ? at::kFloat : at::kBFloat16);
  }
}

TEST(LstNetwork, KeepsNothingOfBackboneBlocksThatHaveNoSideBlock) {
  MethodConfig config{.method = "lst", .lst = {.reduction = 4, .layers = {1, 3}}};
  const auto shallow = used_bytes({.num_blocks = 4}, config), deep = used_bytes({.num_blocks = 12}, config);
  EXPECT_EQ(deep.kept, shallow.kept);
  EXPECT_EQ(deep.peak, shallow.peak);
  config.lst.layers = {1, 2, 3};
  EXPECT_GT(used_bytes({.num_blocks = 12}, config).kept, deep.kept);
}

TEST(LstPlan, NamesWhatDoesNotDivideAndWhichLayerIsNotThere) {
  EXPECT_THAT(lst_error({.reduction = 3}), HasSubstr("divisor of the width 16"));
  EXPECT_THAT(lst_error({.reduction = 16}), HasSubstr("divisor of the head width 8"));
  EXPECT_THAT(lst_error({.reduction = 4, .layers = {0, 4}}), HasSubstr("0..3"));
  EXPECT_THAT(lst_error({.reduction = 4, .layers = {2, 1}}), HasSubstr("found 1 after 2"));
  EXPECT_THAT(lst_error({.reduction = 4, .layers = {-1}}), HasSubstr("found -1"));
  EXPECT_EQ(lst_error({.reduction = 8}), "");
}

}  // namespace
}  // namespace espalier::peft
