// SPDX-License-Identifier: Apache-2.0
#include "model/slice.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>

#include "common/counting_allocator.h"
#include "common/error.h"
#include "model/weights.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/model/stage_chain.h"

namespace espalier::model {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// Remembers what was taken from it.
class Recorder : public WeightSource {
 public:
  explicit Recorder(const WeightSource& source) : source_(source) {}
  [[nodiscard]] bool contains(const std::string& name) const override { return source_.contains(name); }
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const override { return source_.shape(name); }
  [[nodiscard]] at::Tensor get(const std::string& name) const override {
    taken.insert(name);
    return source_.get(name);
  }
  [[nodiscard]] std::vector<std::string> names() const override { return source_.names(); }
  mutable std::multiset<std::string> taken;

 private:
  const WeightSource& source_;
};

class SliceTest : public testing::Test {
 protected:
  void write(const test::TinyModel& model) {
    test::write_tiny_model(model, folder_.path());
    weights_ = open_model_folder(folder_.path());
    backbone_ = read_backbone(folder_.path(), {});
  }
  /// Rewrites the folder's tensors; `change` sees a map of owned copies.
  void rewrite(const std::function<void(std::map<std::string, at::Tensor>&)>& change) {
    std::map<std::string, at::Tensor> tensors;
    for (const auto& name : weights_->names()) tensors[name] = weights_->get(name).clone();
    change(tensors);
    weights_.reset();
    write_safetensors(folder_.path() / "model.safetensors", {tensors.begin(), tensors.end()}, {});
    weights_ = open_model_folder(folder_.path());
  }
  [[nodiscard]] StageSlice whole(const SliceOptions& options = {}) const {
    return {backbone_, {0, backbone_.num_layers()}, *weights_, options};
  }
  static NamedTensors some_inputs() {
    NamedTensors tensors;
    tensors["input_ids"] = at::arange(3, 3 + 12, at::kLong).view({2, 6});
    tensors["attention_mask"] = at::tensor({1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0}, at::kLong).view({2, 6});
    tensors["token_type_ids"] = at::tensor({0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0}, at::kLong).view({2, 6});
    return tensors;
  }

  TemporaryFolder folder_;
  std::unique_ptr<WeightSource> weights_;
  Backbone backbone_;
};

Backbone chain_of(int num_blocks) {
  Backbone backbone;
  backbone.chain.resize(static_cast<std::size_t>(num_blocks) + 2);
  backbone.chain.front().kind = LayerKind::kEmbedding;
  backbone.chain.back().kind = LayerKind::kHead;
  return backbone;
}

TEST(StagePlan, GivesEveryLayerToExactlyOneStageInOrderAndEveryStageItsShareOfBlocks) {
  for (int num_blocks = 1; num_blocks <= 24; ++num_blocks) {
    for (int num_stages = 1; num_stages <= num_blocks; ++num_stages) {
      const auto ranges = plan_stages(chain_of(num_blocks), num_stages);
      ASSERT_EQ(static_cast<int>(ranges.size()), num_stages);
      int next = 0;
      for (const auto& range : ranges) {
        ASSERT_EQ(range.first, next);
        next = range.end;
        const int blocks = std::min(range.end, num_blocks + 1) - std::max(range.first, 1);
        ASSERT_GE(blocks, num_blocks / num_stages);
        ASSERT_LE(blocks, (num_blocks + num_stages - 1) / num_stages);
      }
      ASSERT_EQ(next, num_blocks + 2);
    }
  }
}

TEST(StagePlan, CutsWhereTheUserSays) {
  const auto ranges = plan_stages(chain_of(6), 3, {1, 5});
  EXPECT_EQ(ranges[0].end, 2);  // embedding and block 0
  EXPECT_EQ(ranges[1].end, 6);
  EXPECT_EQ(ranges[2].end, 8);
}

TEST(StagePlan, RefusesCutsThatLeaveAStageEmpty) {
  EXPECT_THROW(plan_stages(chain_of(3), 4), ConfigError);
  EXPECT_THROW(plan_stages(chain_of(3), 0), ConfigError);
  for (const auto& cuts : std::vector<std::vector<std::int64_t>>{{0, 2}, {2, 2}, {2, 1}, {1, 6}, {1}, {1, 2, 3}}) {
    EXPECT_THROW(plan_stages(chain_of(6), 3, cuts), ConfigError) << testing::PrintToString(cuts);
  }
}

TEST_F(SliceTest, LoadsItsOwnRangeOnly) {
  write({.num_blocks = 3, .has_head = true});
  const std::set<std::string> everything = [&] {
    const auto names = weights_->names();
    return std::set<std::string>(names.begin(), names.end());
  }();
  for (const auto& cuts : test::every_cut(backbone_.num_layers())) {
    std::multiset<std::string> taken_by_all;
    auto ends = cuts;
    ends.push_back(backbone_.num_layers());
    int first = 0;
    for (const int end : ends) {
      const Recorder recorder(*weights_);
      StageSlice slice(backbone_, {first, end}, recorder, {});
      for (const auto& name : recorder.taken) {
        for (int block = 0; block < 3; ++block) {
          if (name.find("layer." + std::to_string(block) + ".") == std::string::npos) continue;
          EXPECT_TRUE(slice.range().contains(block + 1)) << name;
        }
      }
      taken_by_all.insert(recorder.taken.begin(), recorder.taken.end());
      first = end;
    }
    EXPECT_TRUE(std::equal(taken_by_all.begin(), taken_by_all.end(), everything.begin(), everything.end()));
  }
}

TEST_F(SliceTest, KeepsFp32WeightsAsViewsOfTheFileThatCountLikeAllocatedOnes) {
  install_counting_allocator();
  write({});
  const auto before = allocated_bytes().current;
  const auto used = [&] { return allocated_bytes().current - before; };
  {
    auto slice = whole();
    const auto view = weights_->get("bert.encoder.layer.1.intermediate.dense.weight");
    const auto view_bytes = static_cast<std::int64_t>(view.nbytes());
    at::Tensor* slot = nullptr;
    std::int64_t all_bytes = 0;
    slice.visit_weights([&](const std::string& name, at::Tensor& found, const std::vector<std::int64_t>& /*shape*/) {
      if (name == "encoder.1.feed_forward.up.weight") slot = &found;
      all_bytes += static_cast<std::int64_t>(found.nbytes());
    });
    ASSERT_NE(slot, nullptr);
    EXPECT_EQ(slot->const_data_ptr(), view.const_data_ptr());
    EXPECT_EQ(used(), all_bytes);
    EXPECT_EQ(slice.frozen_bytes(), all_bytes);

    slice.make_trainable(*slot);
    EXPECT_TRUE(slot->requires_grad() && slot->is_leaf());
    EXPECT_TRUE(at::equal(*slot, view));
    EXPECT_EQ(used(), all_bytes) << "the owned copy stands in for the mapped bytes";
    EXPECT_EQ(slice.frozen_bytes(), all_bytes - view_bytes);
    {
      const at::NoGradGuard no_grad;
      slot->zero_();
    }
    EXPECT_GT(view.abs().max().item<float>(), 0) << "training must leave the folder's bytes alone";

    const auto moved = std::move(slice);
    EXPECT_EQ(used(), all_bytes);
  }
  EXPECT_EQ(used(), 0);
}

TEST_F(SliceTest, ConvertsTheBackboneToTheComputeTypeAndLeavesTheHeadInFp32) {
  write({.has_head = true});
  SliceOptions options;
  options.compute_type = at::kBFloat16;
  const auto before = allocated_bytes().current;
  auto slice = whole(options);
  slice.visit_weights([&](const std::string& name, const at::Tensor& slot, const std::vector<std::int64_t>& /*shape*/) {
    EXPECT_EQ(slot.scalar_type(), name.starts_with("head.") ? at::kFloat : at::kBFloat16) << name;
  });
  EXPECT_GT(allocated_bytes().current, before);  // the head's views
  Carry carry;
  const auto inputs = slice.prepare(some_inputs());
  EXPECT_EQ(inputs.attention_bias.scalar_type(), at::kBFloat16);
  for (const auto& layer : slice.layers()) layer->forward(carry, inputs, {});
  const auto exact = test::run_in_stages(backbone_, *weights_, {}, some_inputs(), {});
  EXPECT_EQ(carry.at("hidden").scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::allclose(carry.at("hidden").to(at::kFloat), exact.at("hidden"), 0.1, 0.1));
}

TEST_F(SliceTest, HoldsATiedWeightOnceInWhateverType) {
  write({.family = "gpt2"});
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    StageSlice slice(backbone_, {0, backbone_.num_layers()}, *weights_, {.compute_type = type});
    std::map<std::string, at::Tensor> slots;
    std::int64_t bytes = 0;
    slice.visit_weights([&](const std::string& name, const at::Tensor& slot, const auto& /*shape*/) {
      slots[name] = slot;
      bytes += static_cast<std::int64_t>(slot.nbytes());
    });
    const auto& table = slots.at("embedding.token.weight");
    EXPECT_EQ(table.const_data_ptr(), slots.at("head.output.weight").const_data_ptr());
    EXPECT_EQ(slice.frozen_bytes(), bytes - static_cast<std::int64_t>(table.nbytes()));
  }
}

TEST_F(SliceTest, TakesTheStoredCopyOfATiedHeadForTheTableItself) {
  for (const auto* family : {"gpt2", "t5", "bart"}) {
    SCOPED_TRACE(family);
    write({.family = family});
    const auto table = backbone_.family->stored_weight(backbone_.chain.front(), "token.weight").names.front();
    rewrite([&](auto& tensors) { tensors["lm_head.weight"] = tensors.at(table).clone(); });
    const auto pointers = [&](const WeightSource& source) {
      std::map<std::string, const void*> found;
      StageSlice slice(backbone_, {0, backbone_.num_layers()}, source, {});
      slice.visit_weights([&](const std::string& name, const at::Tensor& slot, const auto& /*shape*/) {
        found[name] = slot.const_data_ptr();
      });
      return found;
    };
    {
      const Recorder recorder(*weights_);
      auto found = pointers(recorder);
      EXPECT_EQ(found.at("head.output.weight"), found.at("embedding.token.weight"));
      EXPECT_EQ(recorder.taken.count("lm_head.weight"), 1U);
      found = pointers(recorder);
      EXPECT_EQ(found.at("head.output.weight"), found.at("embedding.token.weight"));
      EXPECT_EQ(recorder.taken.count("lm_head.weight"), 1U) << "compared once";
    }
    rewrite([](auto& tensors) { tensors["lm_head.weight"][3][2] += 1; });
    const auto found = pointers(*weights_);
    EXPECT_NE(found.at("head.output.weight"), found.at("embedding.token.weight")) << "a head of its own";
  }
}

TEST_F(SliceTest, DrawsTheSameDropoutAtEveryCut) {
  for (const auto* family : {"bert", "roberta"}) {
    write({.family = family, .num_blocks = 3, .dropout = 0.2, .has_head = true});
    const ForwardContext context{.is_training = true, .key = {11, 12, 13}};
    const auto whole_chain = test::run_in_stages(backbone_, *weights_, {}, some_inputs(), context).at("logits");
    for (const auto& cuts : test::every_cut(backbone_.num_layers())) {
      const auto carry = test::run_in_stages(backbone_, *weights_, cuts, some_inputs(), context);
      EXPECT_TRUE(at::equal(carry.at("logits"), whole_chain)) << family << testing::PrintToString(cuts);
    }
    EXPECT_FALSE(
        at::allclose(whole_chain, test::run_in_stages(backbone_, *weights_, {}, some_inputs(), {}).at("logits")));
    auto later = context;
    later.key.micro_batch = 14;
    EXPECT_FALSE(
        at::allclose(whole_chain, test::run_in_stages(backbone_, *weights_, {}, some_inputs(), later).at("logits")));
  }
}

TEST_F(SliceTest, LetsTheShareOfDroppedBranchesGrowWithTheBlock) {
  write({.num_blocks = 3});
  for (const LayerRange range : {LayerRange{0, backbone_.num_layers()}, LayerRange{2, backbone_.num_layers()}}) {
    const StageSlice slice(backbone_, range, *weights_, {.drop_path = 0.3});
    for (const auto& layer : slice.layers()) {
      if (layer->block() == nullptr) continue;
      EXPECT_DOUBLE_EQ(layer->block()->spec().drop_path, 0.15 * static_cast<double>(layer->plan().number));
    }
  }
}

TEST_F(SliceTest, RefusesADropPathThatDropsNothing) {
  write({.num_blocks = 1});
  EXPECT_THAT(message_of<ConfigError>([&] { (void)whole({.drop_path = 0.25}); }),
              AllOf(HasSubstr("model.drop_path: expected 0"), HasSubstr("found 0.25 and encoder.0 alone")));
  EXPECT_NO_THROW((void)whole());
  write({.family = "t5", .num_blocks = 3, .num_decoder_blocks = 1});
  EXPECT_THAT(message_of<ConfigError>([&] {
                (void)StageSlice(backbone_, {0, 2}, *weights_, {.drop_path = 0.25});
              }),
              HasSubstr("decoder.0 alone"));
}

TEST_F(SliceTest, NamesEveryTensorThatIsMissingOrHasAnotherShapeOrType) {
  write({});
  rewrite([](auto& tensors) {
    tensors.erase("bert.encoder.layer.2.output.dense.bias");
    tensors.erase("bert.embeddings.LayerNorm.weight");
    tensors["bert.encoder.layer.0.attention.self.key.weight"] = at::zeros({24, 23});
    tensors["bert.encoder.layer.1.attention.self.key.bias"] = at::zeros({24}, at::kLong);
    tensors["encoder.layer.3.output.dense.bias"] = at::zeros({24});  // with and without the prefix
  });
  EXPECT_THAT(
      message_of<ConfigError>([&] { (void)whole(); }),
      AllOf(HasSubstr(folder_.path().string()), HasSubstr("5 of the needed tensors"),
            HasSubstr("encoder.2.feed_forward.down.bias: missing; expected a tensor named "
                      "bert.encoder.layer.2.output.dense.bias"),
            HasSubstr("bert.embeddings.LayerNorm.weight"),
            HasSubstr("key.weight: expected shape [24, 24]; found [24, 23]"),
            HasSubstr("key.bias: expected floating-point numbers; found Long"),
            HasSubstr("encoder.3.feed_forward.down.bias: expected one of these tensors; found bert.encoder.layer.3")));
  // A stage that needs none of them does not care.
  EXPECT_NO_THROW(StageSlice(backbone_, {5, 6}, *weights_, {}));
}

TEST_F(SliceTest, RefusesStoredTensorsThatNobodyKnows) {
  write({});
  rewrite([](auto& tensors) {
    tensors["bert.embeddings.position_ids"] = at::arange(32);
    tensors["cls.predictions.bias"] = at::zeros({50});
    tensors["classifier.weight"] = at::zeros({2, 24});
  });
  EXPECT_NO_THROW(refuse_unknown_tensors(backbone_, *weights_));
  rewrite([](auto& tensors) {
    tensors["bert.encoder.layer.4.output.dense.bias"] = at::zeros({24});
    tensors["adapter.weight"] = at::zeros({2});
  });
  EXPECT_THAT(
      message_of<ConfigError>([&] { refuse_unknown_tensors(backbone_, *weights_); }),
      AllOf(HasSubstr("2 unknown"), HasSubstr("bert.encoder.layer.4.output.dense.bias"), HasSubstr("adapter.weight")));
}

TEST_F(SliceTest, MakesABiasOnlyWhereSomethingIsPadded) {
  write({});
  const auto slice = whole();
  auto tensors = some_inputs();
  const auto bias = slice.prepare(tensors).attention_bias;
  EXPECT_EQ(bias.sizes().vec(), (std::vector<std::int64_t>{2, 1, 1, 6}));
  EXPECT_TRUE(at::equal(bias.eq(0).view({2, 6}).to(at::kLong), tensors.at("attention_mask")));
  EXPECT_EQ(bias.min().item<float>(), std::numeric_limits<float>::lowest());
  tensors["attention_mask"].fill_(1);
  EXPECT_FALSE(slice.prepare(tensors).attention_bias.defined());
  tensors.erase("attention_mask");
  EXPECT_FALSE(slice.prepare(tensors).attention_bias.defined());
}

TEST_F(SliceTest, RefusesImagesOfAnotherSizeThanThePositionsAreFor) {
  write({.family = "vit"});
  const auto slice = whole();
  EXPECT_THAT(message_of<ConfigError>([&] {
                (void)slice.prepare({{"pixel_values", at::zeros({2, 1, 12, 12})}});
              }),
              AllOf(HasSubstr("[rows, 1, 8, 8]"), HasSubstr("[2, 1, 12, 12]"), HasSubstr("--image-size 8")));
  // A config that asks for more patches than the folder has positions for.
  backbone_.chain.front().patch_embedding->image_size = 12;
  EXPECT_THAT(message_of<ConfigError>([&] { (void)whole(); }),
              AllOf(HasSubstr("embeddings.position_embeddings"), HasSubstr("[1, 10, 24]"), HasSubstr("[1, 5, 24]")));
}

TEST_F(SliceTest, RefusesMicroBatchesThatTheModelCannotRead) {
  write({});
  const auto slice = whole();
  const auto refused = [&](const std::string& name, const at::Tensor& tensor) {
    auto tensors = some_inputs();
    tensors[name] = tensor;
    return message_of<ConfigError>([&] { (void)slice.prepare(tensors); });
  };
  EXPECT_THAT(refused("input_ids", at::full({2, 6}, 50, at::kLong)),
              AllOf(HasSubstr("from 0 to 49"), HasSubstr("found 50")));
  EXPECT_THAT(refused("input_ids", at::full({2, 6}, -1, at::kLong)), HasSubstr("found -1"));
  EXPECT_THAT(refused("input_ids", at::zeros({6}, at::kLong)), HasSubstr("[rows, tokens]"));
  EXPECT_THAT(refused("token_type_ids", at::full({2, 6}, 2, at::kLong)),
              AllOf(HasSubstr("token_type_ids"), HasSubstr("found 2")));
  EXPECT_THAT(refused("attention_mask", at::ones({2, 5}, at::kLong)), AllOf(HasSubstr("[2, 6]"), HasSubstr("[2, 5]")));
  EXPECT_THAT(message_of<ConfigError>([&] {
                (void)slice.prepare({{"input_ids", at::zeros({1, 33}, at::kLong)}});
              }),
              AllOf(HasSubstr("at most 32"), HasSubstr("found 33")));
}

TEST_F(SliceTest, RefusesRowsWithoutTheTokenThatTheHeadReadsOnAnyStage) {
  write({.family = "bart"});
  auto ids = at::arange(3, 15, at::kLong).view({2, 6});
  const auto refused = [&] {
    const StageSlice first(backbone_, {0, 2}, *weights_, {});
    NamedTensors tensors{{"input_ids", ids}};
    complete_decoder_inputs(backbone_, tensors);
    (void)first.prepare(std::move(tensors));
  };
  EXPECT_NO_THROW(refused()) << "a language model reads every token";
  backbone_ = read_backbone(folder_.path(), {.num_labels = 3, .kind = "pooled"});
  ids[0][5] = 2;
  EXPECT_THAT(message_of<ConfigError>(refused), AllOf(HasSubstr("input_ids: expected the end-of-sequence token (2)"),
                                                      HasSubstr("1 of 2 rows"), HasSubstr("data.max_length")));
  ids[1][0] = 2;
  EXPECT_NO_THROW(refused());
}

TEST_F(SliceTest, RefusesPositionsThatTheModelDoesNotHave) {
  for (const auto* family : {"gpt2", "llama"}) {
    SCOPED_TRACE(family);
    write({.family = family});
    auto slice = whole();
    const auto refused = [&](const at::Tensor& positions) {
      return message_of<ConfigError>([&] {
        (void)slice.prepare({{"input_ids", at::zeros({2, 6}, at::kLong)}, {"position_ids", positions}});
      });
    };
    const auto last = at::arange(26, 32, at::kLong).unsqueeze(0);
    EXPECT_NO_THROW(
        (void)slice.prepare({{"input_ids", at::zeros({2, 6}, at::kLong)}, {"position_ids", last.expand({2, -1})}}));
    EXPECT_NO_THROW((void)slice.prepare({{"input_ids", at::zeros({2, 6}, at::kLong)}, {"position_ids", last}}));
    EXPECT_THAT(refused(last + 1), AllOf(HasSubstr("position_ids: expected ids from 0 to 31"), HasSubstr("found 32")));
    EXPECT_THAT(refused(last - 27), HasSubstr("found -1"));
    EXPECT_THAT(refused(at::zeros({2, 5}, at::kLong)),
                AllOf(HasSubstr("position_ids: expected an array [2, 6]"), HasSubstr("found [2, 5]")));
    EXPECT_THAT(refused(at::zeros({6}, at::kLong)), HasSubstr("found [6]"));
    slice.set_prompts(4, at::zeros({4, 24}));
    EXPECT_THAT(refused(last), AllOf(HasSubstr("from 0 to 27"), HasSubstr("found 31"))) << "four stand before them";
  }
}

}  // namespace
}  // namespace espalier::model
