// SPDX-License-Identifier: Apache-2.0
// BART (Lewis et al., ACL 2020): post-norm encoder and decoder with learned positions that begin at row 2 of their
// table.
#include <cmath>

#include "model/families/families.h"
#include "model/families/plan_parts.h"

namespace espalier::model {

namespace {

constexpr std::int64_t kPositionOffset = 2;

RoleNames block_names(const std::string& stack) {
  const auto at = [&](const std::string& name) { return StoredName{{stack + ".layers.{}." + name}}; };
  return {
      {"attention.query", at("self_attn.q_proj")},
      {"attention.key", at("self_attn.k_proj")},
      {"attention.value", at("self_attn.v_proj")},
      {"attention.output", at("self_attn.out_proj")},
      {"attention.norm", at("self_attn_layer_norm")},
      {"cross_attention.query", at("encoder_attn.q_proj")},
      {"cross_attention.key", at("encoder_attn.k_proj")},
      {"cross_attention.value", at("encoder_attn.v_proj")},
      {"cross_attention.output", at("encoder_attn.out_proj")},
      {"cross_attention.norm", at("encoder_attn_layer_norm")},
      {"feed_forward.up", at("fc1")},
      {"feed_forward.down", at("fc2")},
      {"feed_forward.norm", at("final_layer_norm")},
  };
}

RoleNames embedding_names(const std::string& stack) {
  return {{"token", {{"shared"}, {"encoder.embed_tokens", "decoder.embed_tokens"}}},
          {"position", {{stack + ".embed_positions"}}},
          {"norm", {{stack + ".layernorm_embedding"}}}};
}

FamilyNames bart_names(bool is_head_tied) {
  FamilyNames names;
  names.model_type = "bart";
  names.prefixes = {"model.", ""};
  names.places["embedding"] = embedding_names("encoder");
  names.places["decoder_embedding"] = embedding_names("decoder");
  names.places["encoder"] = block_names("encoder");
  names.places["decoder"] = block_names("decoder");
  StoredName output{{"/lm_head"}};
  if (is_head_tied) output.tied_names = {"shared", "encoder.embed_tokens", "decoder.embed_tokens"};
  StoredName bias{{"/final_logits_bias"}};
  bias.is_whole = bias.is_buffer = true;
  names.places["head"] = {{"output", output},
                          {"output.bias", bias},
                          {"dense", {{"/classification_head.dense"}}},
                          {"classifier", {{"/classification_head.out_proj"}}}};
  names.extras = {"encoder.embed_tokens.", "decoder.embed_tokens.", "encoder.version", "decoder.version", "lm_head.",
                  "final_logits_bias",     "classification_head.",  "qa_outputs."};
  return names;
}

BlockSpec read_block(const ConfigFile& config, const std::string& stack) {
  BlockSpec spec;
  spec.width = config.integer("d_model", 1);
  spec.num_heads = spec.num_key_value_heads = config.integer(stack + "_attention_heads", 1);
  spec.head_width = read_head_width(config, spec.width, spec.num_heads, stack + "_attention_heads");
  spec.feed_forward_width = config.integer(stack + "_ffn_dim", 1);
  spec.norm_epsilon = 1e-5;
  spec.activation = read_activation(config, "activation_function", "gelu");
  spec.hidden_dropout = config.probability_or("dropout", 0.1);
  spec.attention_dropout = config.probability_or("attention_dropout", 0);
  spec.activation_dropout = config.probability_or("activation_dropout", 0);
  return spec;
}

}  // namespace

Backbone plan_bart(const ConfigFile& config, const HeadRequest& request) {
  expect_flag(config, "is_encoder_decoder", true, "BART is supported with both of its stacks");
  // Kinds of BART that older configs could name.
  expect_flag(config, "normalize_before", false, "pre-norm BART (mBART) is not supported");
  expect_flag(config, "add_final_layer_norm", false, "pre-norm BART (mBART) is not supported");
  expect_flag(config, "normalize_embedding", true, "embeddings without norm are not supported in this family");
  expect_flag(config, "static_position_embeddings", false, "sinusoidal positions are not supported in this family");
  refuse_altered_weights(config);

  const auto encoder_block = read_block(config, "encoder");
  auto decoder_block = read_block(config, "decoder");
  decoder_block.is_causal = true;
  decoder_block.has_cross_attention = true;

  Backbone backbone;
  backbone.family = std::make_shared<Family>(bart_names(config.flag_or("tie_word_embeddings", true)));
  backbone.width = encoder_block.width;
  backbone.vocab_size = config.integer("vocab_size", 1);
  backbone.max_positions = config.integer("max_position_embeddings", 1);
  backbone.initializer_range = config.positive_or("init_std", 0.02);
  backbone.pad_token_id = config.integer_or("pad_token_id", 0, 1);
  backbone.decoder_start_token_id = config.integer_or("decoder_start_token_id", 0, 2);

  EmbeddingSpec embedding;
  embedding.vocab_size = backbone.vocab_size;
  embedding.width = backbone.width;
  embedding.token_scale = config.flag_or("scale_embedding", false) ? std::sqrt(static_cast<double>(backbone.width)) : 1;
  embedding.position_offset = kPositionOffset;
  embedding.num_positions = backbone.max_positions + kPositionOffset;
  embedding.pad_token_id = backbone.pad_token_id;
  embedding.norm_epsilon = 1e-5;
  embedding.dropout = encoder_block.hidden_dropout;

  add_layer(backbone, LayerKind::kEmbedding, "embedding", Stack::kEncoder).embedding = embedding;
  add_blocks(backbone, "encoder", config.integer("encoder_layers", 1), encoder_block, Stack::kEncoder);
  add_layer(backbone, LayerKind::kEmbedding, "decoder_embedding", Stack::kDecoder).embedding = embedding;
  add_blocks(backbone, "decoder", config.integer("decoder_layers", 1), decoder_block, Stack::kDecoder);
  if (wants_language_model(config, request, /*is_usual=*/true)) {
    add_language_model_head(backbone, Stack::kDecoder).stores_bias_row = true;
  } else {
    add_sequence_head(backbone, config, request).eos_token_id = config.integer_or("eos_token_id", 0, 2);
  }
  return backbone;
}

}  // namespace espalier::model
