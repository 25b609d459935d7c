// SPDX-License-Identifier: Apache-2.0
// Whole models have the sizes that were published of them: counted from config.json alone, a tied tensor once.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "peft/method.h"
#include "stages.h"

namespace espalier::peft {
namespace {

using nlohmann::json;

std::int64_t count_all(const json& config) {
  const auto count = count_trained({.method = "full"}, plan_config(config));
  return count.method + count.head;
}

json t5(int width, int heads, int feed_forward, int layers) {
  return {{"model_type", "t5"},
          {"architectures", {"T5ForConditionalGeneration"}},
          {"d_model", width},
          {"num_heads", heads},
          {"d_kv", width == 1024 && feed_forward == 16384 ? 128 : 64},
          {"d_ff", feed_forward},
          {"num_layers", layers},
          {"vocab_size", 32128},
          {"feed_forward_proj", "relu"},
          {"relative_attention_num_buckets", 32}};
}

json bert(const char* type, int width, int heads, int feed_forward, int layers, int vocabulary, int positions,
          int types) {
  return {{"model_type", type},
          {"hidden_size", width},
          {"num_attention_heads", heads},
          {"intermediate_size", feed_forward},
          {"num_hidden_layers", layers},
          {"vocab_size", vocabulary},
          {"max_position_embeddings", positions},
          {"type_vocab_size", types},
          {"pad_token_id", 1}};
}

json opt(int width, int heads, int feed_forward, int layers) {
  return {{"model_type", "opt"},
          {"hidden_size", width},
          {"num_attention_heads", heads},
          {"ffn_dim", feed_forward},
          {"num_hidden_layers", layers},
          {"vocab_size", 50272},
          {"max_position_embeddings", 2048},
          {"word_embed_proj_dim", width},
          {"do_layer_norm_before", true}};
}

json vit() {
  return {{"model_type", "vit"},     {"hidden_size", 768}, {"intermediate_size", 3072}, {"num_attention_heads", 12},
          {"num_hidden_layers", 12}, {"image_size", 224},  {"patch_size", 16},          {"num_labels", 1000}};
}

TEST(PublishedSizes, AreThoseOfTheTrueConfigurations) {
  EXPECT_EQ(count_all(t5(768, 12, 3072, 12)), 222'903'552);      // t5-base
  EXPECT_EQ(count_all(t5(1024, 16, 4096, 24)), 737'668'096);     // t5-large
  EXPECT_EQ(count_all(t5(1024, 32, 16384, 24)), 2'851'598'336);  // t5-3b
  // bert-base-uncased with its pooler, and a classifier of two classes
  EXPECT_EQ(count_all(bert("bert", 768, 12, 3072, 12, 30522, 512, 2)), 109'482'240 + 2 * 768 + 2);
  // roberta-large for two classes: dense layer and classifier in place of a pooler
  EXPECT_EQ(count_all(bert("roberta", 1024, 16, 4096, 24, 50265, 514, 1)), 355'361'794);
  EXPECT_EQ(count_all({{"model_type", "bart"},
                       {"d_model", 1024},
                       {"encoder_layers", 12},
                       {"decoder_layers", 12},
                       {"encoder_attention_heads", 16},
                       {"decoder_attention_heads", 16},
                       {"encoder_ffn_dim", 4096},
                       {"decoder_ffn_dim", 4096},
                       {"vocab_size", 50265},
                       {"max_position_embeddings", 1024}}),
            406'291'456);                                         // bart-large
  EXPECT_EQ(count_all(opt(2048, 32, 8192, 24)), 1'315'758'080);   // opt-1.3b
  EXPECT_EQ(count_all(opt(4096, 32, 16384, 32)), 6'658'473'984);  // opt-6.7b
  EXPECT_EQ(count_all({{"model_type", "gpt2"},
                       {"n_embd", 1024},
                       {"n_head", 16},
                       {"n_layer", 24},
                       {"n_positions", 1024},
                       {"vocab_size", 50257}}),
            354'823'168);  // gpt2-medium
  EXPECT_EQ(count_all({{"model_type", "llama"},
                       {"hidden_size", 4096},
                       {"intermediate_size", 11008},
                       {"num_attention_heads", 32},
                       {"num_hidden_layers", 32},
                       {"vocab_size", 32000}}),
            6'738'415'616);  // Llama-2-7b
  EXPECT_EQ(count_all(vit()),
            86'567'656);  // vit-base-patch16-224
}

std::int64_t count_lst(const json& config, const LstConfig& lst) {
  return count_trained({.method = "lst", .lst = lst}, plan_config(config)).method;
}

TEST(PublishedSizes, OfLstAreThoseOfThePaper) {
  const auto base = t5(768, 12, 3072, 12), large = t5(1024, 16, 4096, 24), huge = t5(1024, 32, 16384, 24);
  const std::vector<std::int64_t> without_every_fourth = {1, 2, 3, 5, 6, 7, 9, 10, 11};
  const std::vector<std::int64_t> odd = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23};
  const auto both = [](std::int64_t reduction, const std::vector<std::int64_t>& layers) {
    return LstConfig{.reduction = reduction, .layers = layers, .decoder_layers = layers};
  };
  EXPECT_EQ(count_lst(base, both(8, without_every_fourth)), 3'878'712);
  EXPECT_EQ(count_lst(base, both(8, {})), 5'097'240);
  EXPECT_EQ(count_lst(base, both(8, {2, 3, 6, 7, 10, 11})), 2'660'184);
  EXPECT_EQ(count_lst(base, both(8, {3, 7, 11})), 1'441'656);
  EXPECT_EQ(count_lst(base, both(4, {})), 16'386'072);
  EXPECT_EQ(count_lst(base, both(16, {})), 1'775'256);
  EXPECT_EQ(count_lst(base, both(32, {})), 694'872);
  EXPECT_EQ(count_lst(large, both(8, odd)), 9'057'328);
  EXPECT_EQ(count_lst(huge, both(8, {23})), 2'494'896);
  EXPECT_EQ(count_lst(vit(), {}), 2'376'492);  // ViT-B/16
  auto visual = base;
  visual.update({{"feat_dim", 2048}, {"pos_dim", 4}, {"n_images", 2}});
  const auto clip_t5 = count_trained({.method = "lst", .lst = both(4, {})}, plan_config(visual));
  EXPECT_EQ(clip_t5.method + clip_t5.head, 17'967'384);
}

TEST(PublishedSizes, OfAdaptersCountThoseBehindCrossAttentionWhereAskedFor) {
  const auto count = [](const AdapterConfig& adapter) {
    return count_trained({.method = "adapter", .adapter = adapter}, plan_config(t5(768, 12, 3072, 12))).method;
  };
  EXPECT_EQ(count({}), 3'578'112);  // with the norms of the blocks 1.63 % of T5-base, as in the LST paper
  EXPECT_EQ(count({.norms_trained = true}), 3'578'112 + 60 * 768);
  EXPECT_EQ(count({.cross_attention = true}), 4'472'640);
}

}  // namespace
}  // namespace espalier::peft
