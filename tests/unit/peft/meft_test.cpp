// SPDX-License-Identifier: Apache-2.0
#include "peft/meft.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "meft_recurrence.h"
#include "model/block_layer.h"

namespace espalier::peft {
namespace {

class Variants : public testing::TestWithParam<std::int64_t> {};

TEST_P(Variants, ExactInversionEqualsOrdinaryAutogradBitByBitOn24Layers) {
  const TinyModel tiny = make_tiny(of_depth(24));
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    SCOPED_TRACE(at::toString(type));
    const MethodConfig config = meft(GetParam());
    Stages stages(tiny, config, 1, {.compute_type = type});
    stir_adapters(stages);
    const Step found = stages.step(make_batch(), training_context());
    EXPECT_EQ(inversion_error(stages), 0);
    expect_same_bits(found, step_by_the_book(stages, config.meft, make_batch()));
  }
}

TEST_P(Variants, OptionsComputeTheirEquations) {
  const TinyModel tiny = make_tiny({});
  std::vector<MeftConfig> all = {{.merge = "sum"}, {.merge = "concat"}, {.frozen_bottom = 2}, {.fraction_bits = 16}};
  if (GetParam() != 3) all.push_back({.norm_in_adapter = true});
  for (const double scale : {1.0, 0.5, 0.125, 0.1}) all.push_back({.lambda = scale, .beta = scale});
  for (const MeftConfig& options : all) {
    const MethodConfig config = meft(GetParam(), options);
    SCOPED_TRACE(::testing::Message() << options.merge << " " << options.lambda << " " << options.frozen_bottom);
    Stages stages(tiny, config, 1);
    stir_adapters(stages);
    const Step found = stages.step(make_batch(), training_context());
    EXPECT_EQ(inversion_error(stages), 0);
    expect_same_bits(found, step_by_the_book(stages, config.meft, make_batch()));
  }
}

TEST_P(Variants, FactorsOfLoraTrainInsideTheBlocks) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = meft(GetParam(), {.factors = "lora"});
  config.lora = {.rank = 2, .dropout = 0.1, .targets = {"attention.value", "feed_forward.down"}};
  Stages stages(tiny, config, 1);
  stir_adapters(stages);
  int num_factors = 0;
  for (const TrainedTensor& tensor : stages.trained()) {
    if (!tensor.name.ends_with("lora_b")) continue;
    tensor.value.detach().copy_(at::arange(tensor.value.numel()).view(tensor.value.sizes()).sin() * 0.1);
    ++num_factors;
  }
  EXPECT_EQ(num_factors, 4 * 2);
  const Step found = stages.step(make_batch(), training_context());
  EXPECT_EQ(inversion_error(stages), 0);
  expect_same_bits(found, step_by_the_book(stages, config.meft, make_batch()));
}

TEST_P(Variants, FactorsStandInAdaptedBlocksAlone) {
  const TinyModel tiny = make_tiny({});
  for (const char* factors : {"lora", "rosa"}) {
    SCOPED_TRACE(factors);
    MethodConfig config = meft(GetParam(), {.frozen_bottom = 2, .factors = factors});
    config.lora.rank = 2;
    config.rosa.rank = 2;
    Stages stages(tiny, config, 1);
    stir_adapters(stages);
    const Step found = stages.step(make_batch(), training_context());
    EXPECT_TRUE(found.gradients.contains("encoder.2.attention.query." + std::string(factors) + "_b"));
    EXPECT_FALSE(found.gradients.contains("encoder.1.attention.query." + std::string(factors) + "_b"));
    expect_same_bits(found, step_by_the_book(stages, config.meft, make_batch()));
    expect_same_bits(Stages(tiny, config, 3).step(make_batch(), training_context()),
                     Stages(tiny, config, 1).step(make_batch(), training_context()));
  }
}

TEST_P(Variants, LeaveThePoolerOfBertAsItIsUnlessAsked) {
  const TinyModel tiny = make_tiny({});
  for (const bool is_trained : {false, true}) {
    Stages stages(tiny, meft(GetParam(), {.pooler_trained = is_trained}), 2);
    const auto gradients = stages.step(make_batch(), training_context()).gradients;
    EXPECT_EQ(gradients.contains("head.dense.weight"), is_trained);
    EXPECT_TRUE(gradients.contains("head.classifier.weight"));
  }
}

TEST_P(Variants, FactorsOfRosaTrainInsideTheBlocksAfterEveryEvent) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = meft(GetParam(), {.factors = "rosa"});
  config.rosa.rank = 3;
  config.rosa.targets = {"attention.query", "attention.output", "feed_forward.up", "feed_forward.down"};
  for (const bool trains_head : {true, false}) {
    config.rosa.head_trained = trains_head;
    Stages stages(tiny, config, 1);
    stir_adapters(stages);
    for (const std::int64_t event : {1, 2}) {
      run_event(stages, event);
      const Step found = stages.step(make_batch(), training_context());
      EXPECT_EQ(inversion_error(stages), 0);
      const auto is_factor = [](const auto& named) { return named.first.find(".rosa_") != std::string::npos; };
      EXPECT_EQ(std::count_if(found.gradients.begin(), found.gradients.end(), is_factor), 4 * 4 * 2);
      EXPECT_EQ(found.gradients.contains("head.classifier.weight"), trains_head);
      expect_same_bits(found, step_by_the_book(stages, config.meft, make_batch()));
    }
  }
}

TEST_P(Variants, FactorsOfRosaLeaveTheFunctionInAnEventAndKeepWhatTheySplit) {
  const TinyModel tiny = make_tiny({});
  MethodConfig config = meft(GetParam(), {.factors = "rosa"});
  config.rosa.rank = 3;
  Stages stages(tiny, config, 2);
  stir_adapters(stages);
  const auto kept = stages.methods.front()->kept_tensors();
  EXPECT_EQ(kept.size(), 2U * 4U) << "query, key, value and output of two blocks";
  for (const std::int64_t event : {1, 2}) {
    for (const TrainedTensor& tensor : stages.trained()) {
      if (tensor.name.find(".rosa_") != std::string::npos) {
        tensor.value.detach().add_(at::arange(tensor.value.numel()).view(tensor.value.sizes()).sin(), 0.02);
      }
    }
    const at::Tensor before = stages.evaluate(make_batch());
    const at::Tensor rest = kept.at("encoder.1.attention.query.weight").clone();
    const at::Tensor factor = stages.trained("encoder.1.attention.query.rosa_b").detach().clone();
    run_event(stages, event);
    EXPECT_TRUE(at::allclose(stages.evaluate(make_batch()), before, 0, 1e-4));
    EXPECT_FALSE(at::allclose(kept.at("encoder.1.attention.query.weight"), rest, 0, 1e-3));
    EXPECT_FALSE(at::allclose(stages.trained("encoder.1.attention.query.rosa_b"), factor, 0, 1e-3));
  }
}

TEST_P(Variants, CachedBlocksGiveWhatReversibleOnesGive) {
  const TinyModel tiny = make_tiny({});
  Stages all(tiny, meft(GetParam()), 1);
  const Step expected = all.step(make_batch(), training_context());
  for (const MeftConfig& options : {MeftConfig{.reversible_layers = 0}, MeftConfig{.reversible_layers = 2},
                                    MeftConfig{.cached_top = 1}, MeftConfig{.cached_top = 4}}) {
    for (const int num_stages : {1, 2, 4}) {
      expect_same_bits(Stages(tiny, meft(GetParam(), options), num_stages).step(make_batch(), training_context()),
                       expected);
    }
  }
}

TEST_P(Variants, GradientsInDoubleEqualThoseOfTheRealRecurrence) {
  const TinyModel tiny = make_tiny(of_depth(3));
  const MethodConfig config = meft(GetParam(), {.inversion = "float"});
  Stages stages(tiny, config, 1, {.compute_type = at::kDouble});
  stir_adapters(stages);
  for (const TrainedTensor& tensor : stages.trained()) tensor.value.set_data(tensor.value.to(at::kDouble));
  static_cast<void>(stages.step(make_batch(), measured_context()));
  EXPECT_LT(inversion_error(stages), 1e-9);
  const Step found = stages.step(make_batch(), training_context());
  const Step expected = step_by_the_book(stages, config.meft, make_batch());
  EXPECT_TRUE(at::equal(found.logits, expected.logits));
  EXPECT_LT(gradient_error(found, expected), 1e-9);
}

TEST_P(Variants, ExactGradientsAreThoseOfTheRealRecurrenceUpToRounding) {
  const TinyModel tiny = make_tiny(of_depth(12));
  const MethodConfig exact = meft(GetParam()), real = meft(GetParam(), {.inversion = "float"});
  Stages stages(tiny, exact, 1), in_double(tiny, real, 1, {.compute_type = at::kDouble});
  stir_adapters(stages);
  stir_adapters(in_double);
  const Step expected = step_by_the_book(in_double, real.meft, make_batch());
  const Step found = stages.step(make_batch(), training_context());
  EXPECT_TRUE(at::allclose(found.logits, expected.logits.to(at::kFloat), 0, 1e-4));
  EXPECT_LT(gradient_error(found, expected), 2e-4);
}

TEST_P(Variants, BeginNearTheBackboneAndAtItsRecurrenceWithoutAdapters) {
  const TinyModel tiny = make_tiny(of_depth(4, /*dropout=*/0));
  Stages stages(tiny, meft(GetParam(), {.merge = "sum"}), 2);
  const at::Tensor start = stages.evaluate(make_batch());
  for (const TrainedTensor& tensor : stages.trained()) {
    if (tensor.name.find("adapter") != std::string::npos) tensor.value.detach().zero_();
  }
  const at::Tensor without = stages.evaluate(make_batch());
  EXPECT_LT((start - without).norm().item<double>(), 0.1 * without.norm().item<double>());

  // MEFT1: y1 - layer(x2) = 0.1 x1, y2 = x2. MEFT2 mirrors it.
  const model::StageSlice bare(tiny.backbone, {0, tiny.backbone.num_layers()}, *tiny.weights, {});
  const model::StageInputs inputs = bare.prepare(make_batch());
  model::Carry carry;
  at::Tensor older, newer;
  for (const auto& layer : bare.layers()) {
    if (!layer->plan().block) {
      if (newer.defined()) carry["hidden"] = 0.1 * older + newer;
      layer->forward(carry, inputs, {});
      older = newer = carry.at("hidden");
    } else if (GetParam() != 3) {
      carry["hidden"] = newer;
      layer->forward(carry, inputs, {});
      older = 0.1 * older + carry.at("hidden");
      std::swap(older, newer);
    } else {
      older =
          0.1 * older + layer->block()->attention_part(newer, model::block_inputs(layer->plan(), carry, inputs), {});
      newer = 0.1 * newer + layer->block()->feed_forward_part(older, {});
    }
  }
  EXPECT_TRUE(at::allclose(without, carry.at("logits"), 0, 1e-4));
}

INSTANTIATE_TEST_SUITE_P(Meft, Variants, testing::Values(1, 2, 3),
                         [](const auto& tested) { return std::to_string(tested.param); });

class Families : public testing::TestWithParam<const char*> {
 protected:
  Families() {
    const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden" / (GetParam() + std::string("_1"));
    tiny_ = {model::read_backbone(folder, {}), model::open_model_folder(folder)};
    const auto golden = model::open_safetensors(folder / "golden.safetensors");
    for (const auto* name : {"input_ids", "attention_mask", "token_type_ids", "pixel_values", "labels", "vis_feats",
                             "vis_boxes", "img_order_ids", "obj_order_ids"}) {
      if (golden->contains(name)) batch_[name] = golden->get(name);
    }
  }
  static at::Tensor wave(const at::Tensor& logits) {
    return (at::arange(logits.numel()) + 1).sin().view(logits.sizes());
  }

  TinyModel tiny_;
  model::NamedTensors batch_;
};

TEST_P(Families, EqualOrdinaryAutogradAndAreTheSameForEveryCut) {
  const bool has_decoder = tiny_.backbone.is_encoder_decoder();
  for (const std::int64_t variant : {1, 2, 3}) {
    for (const std::int64_t frozen_bottom : {0, 1, 4}) {
      if ((has_decoder && variant == 3) || frozen_bottom >= tiny_.backbone.num_blocks()) continue;
      SCOPED_TRACE(::testing::Message() << "MEFT" << variant << ", frozen " << frozen_bottom);
      const MethodConfig config = meft(variant, {.frozen_bottom = frozen_bottom});
      Stages whole(tiny_, config, 1);
      stir_adapters(whole);
      const Step found = whole.step(batch_, training_context(), wave);
      const Step expected = step_by_the_book(whole, config.meft, batch_, wave);
      if (has_decoder) {
        // What the decoder's blocks give the memory is summed block by block, not read by read.
        EXPECT_TRUE(at::equal(found.logits, expected.logits));
        EXPECT_LT(gradient_error(found, expected), 1e-5);
      } else {
        expect_same_bits(found, expected);
      }
      for (int num_stages = 2; num_stages <= tiny_.backbone.num_blocks(); ++num_stages) {
        Stages cut(tiny_, config, num_stages);
        stir_adapters(cut);
        expect_same_bits(cut.step(batch_, training_context(), wave), found);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Families,
                         testing::Values("bert", "roberta", "t5", "clip_t5", "bart", "opt", "gpt2", "llama", "vit"),
                         [](const auto& family) { return std::string(family.param); });

TEST(MeftMethod, SendsNothingBackBelowItsFirstBlock) {
  const TinyModel tiny = make_tiny({});
  Stages stages(tiny, meft(1, {.frozen_bottom = 2}), 4);
  using Names = std::vector<std::string>;
  EXPECT_EQ(stages.step(make_batch(), training_context()).sent_back,
            (std::vector<Names>{{}, {}, {"stream_1", "stream_2"}}));
}

}  // namespace
}  // namespace espalier::peft
