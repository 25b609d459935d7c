// SPDX-License-Identifier: Apache-2.0
// LST beside every family: on the folders that tools/make_golden.py wrote, encoder-decoders and language models too.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "common/error.h"
#include "peft/lst_plan.h"
#include "stages.h"

namespace espalier::peft {
namespace {

class LstFamilies : public testing::TestWithParam<const char*> {
 protected:
  LstFamilies() {
    const auto folder = std::filesystem::path(ESPALIER_SOURCE_DIR) / "tests/golden" / GetParam();
    tiny_ = {model::read_backbone(folder, {}), model::open_model_folder(folder)};
    const auto golden = model::open_safetensors(folder / "golden.safetensors");
    for (const auto* name : {"input_ids", "attention_mask", "token_type_ids", "pixel_values", "labels", "vis_feats",
                             "vis_boxes", "img_order_ids", "obj_order_ids"}) {
      if (golden->contains(name)) batch_[name] = golden->get(name);
    }
    model::complete_decoder_inputs(tiny_.backbone, batch_);
  }

  TinyModel tiny_;
  model::NamedTensors batch_;
};

TEST_P(LstFamilies, AreTheBackboneWhereTheSideNetworkIsItsCopy) {
  Stages stages(tiny_, {.method = "lst", .lst = {.reduction = 1, .gate = "one"}}, 2);
  for (const TrainedTensor& tensor : stages.trained()) {
    if (tensor.name.ends_with("first.weight") || tensor.name == "lst.up.weight") {
      tensor.value.detach().copy_(at::eye(tensor.value.size(0)));
    }
  }
  EXPECT_TRUE(at::allclose(stages.evaluate(batch_), run_bare(tiny_, batch_), 1e-4, 1e-5));
}

/// Gradient of the logits that no symmetry cancels.
at::Tensor uneven_gradient(const at::Tensor& logits) {
  return (at::arange(logits.numel(), at::kFloat) * 0.7).sin().view(logits.sizes()).to(logits.scalar_type());
}

TEST_P(LstFamilies, GiveTheSameGradientsOnAnyNumberOfStages) {
  LstConfig all{.reduction = 2};
  LstConfig some{.reduction = 2, .layers = {1}, .fuse = "after", .prune_by_head = true, .merge_last = true};
  if (tiny_.backbone.is_encoder_decoder()) {
    some.decoder_layers = {0};
  }
  // Of T5's bias, which knows no images; others have none.
  const LstConfig shared{.reduction = 2, .position_bias = "backbone"};
  for (const LstConfig& lst : {all, some, shared}) {
    const MethodConfig config{.method = "lst", .lst = lst};
    const Step expected = Stages(tiny_, config, 1).step(batch_, training_context(), uneven_gradient);
    std::int64_t num_scalars = 0;
    for (const TrainedTensor& tensor : Stages(tiny_, config, 1).trained()) {
      num_scalars += tensor.value.numel();
      if (!tensor.is_inert) {
        ASSERT_TRUE(expected.gradients.contains(tensor.name)) << tensor.name;
        EXPECT_TRUE(tensor.name.ends_with("key.bias") ||
                    expected.gradients.at(tensor.name).abs().max().item<float>() > 0)
            << tensor.name;
      }
    }
    const TrainedCount count = count_trained(config, tiny_.backbone);
    EXPECT_EQ(count.method + count.head, num_scalars);
    for (int num_stages = 2; num_stages <= tiny_.backbone.num_blocks(); ++num_stages) {
      const Step step = Stages(tiny_, config, num_stages).step(batch_, training_context(), uneven_gradient);
      EXPECT_TRUE(at::equal(step.logits, expected.logits)) << num_stages;
      ASSERT_EQ(step.gradients.size(), expected.gradients.size()) << num_stages;
      for (const auto& [name, gradient] : expected.gradients) {
        EXPECT_TRUE(at::equal(step.gradients.at(name), gradient)) << name << " on " << num_stages << " stages";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, LstFamilies,
                         testing::Values("bert_1", "roberta_1", "t5_1", "clip_t5_1", "bart_1", "opt_1", "gpt2_1",
                                         "llama_1", "vit_1"),
                         [](const auto& tested) { return std::string(tested.param); });

TEST_P(LstFamilies, LearnFromWhatTheBareBackbonePredicts) {
  if (!tiny_.backbone.head().is_language_model) {
    EXPECT_THROW(Stages(tiny_, {.method = "lst", .lst = {.reduction = 2, .distill_weight = 1}}, 1), ConfigError);
    return;
  }
  Stages stages(tiny_, {.method = "lst", .lst = {.reduction = 2, .layers = {0}, .distill_weight = 1}}, 1);
  auto batch = batch_;
  model::complete_decoder_inputs(tiny_.backbone, batch);
  const auto result =
      stages.methods.front()->forward({}, stages.slices.front()->prepare(batch), {}, /*keeps_pass=*/true);
  model::StageInputs text = model::text_only(stages.slices.front()->prepare(batch));
  model::Carry carry;
  for (const auto& layer : stages.slices.front()->layers()) layer->forward(carry, text, {});
  EXPECT_TRUE(at::equal(result.outgoing.at(kTeacherLogits), carry.at("logits")));
  EXPECT_FALSE(result.outgoing.at(kTeacherLogits).requires_grad());
}

TEST(LstPlan, RefusesDecoderLayersWithoutADecoder) {
  LstConfig config{.reduction = 4, .decoder_layers = {0}};
  EXPECT_THROW(static_cast<void>(plan_lst(config, plan_tiny({}))), ConfigError);
}

}  // namespace
}  // namespace espalier::peft
