// SPDX-License-Identifier: Apache-2.0
// OPT (Zhang et al., 2022): a causal stack, pre-norm but for the 350m model, which also projects its narrower token
// embeddings in and out. Positions count attended tokens and begin at row 2 of their table.
#include "model/families/families.h"
#include "model/families/plan_parts.h"

namespace espalier::model {

namespace {

constexpr std::int64_t kOptPositionOffset = 2;

FamilyNames opt_names(bool is_head_tied) {
  FamilyNames names;
  names.model_type = "opt";
  names.prefixes = {"model.", ""};
  names.places["embedding"] = {{"token", {{"decoder.embed_tokens"}}},
                               {"position", {{"decoder.embed_positions"}}},
                               {"projection", {{"decoder.project_in"}}}};
  const auto at = [](const std::string& name) { return StoredName{{"decoder.layers.{}." + name}}; };
  names.places["decoder"] = {
      {"attention.query", at("self_attn.q_proj")},
      {"attention.key", at("self_attn.k_proj")},
      {"attention.value", at("self_attn.v_proj")},
      {"attention.output", at("self_attn.out_proj")},
      {"attention.norm", at("self_attn_layer_norm")},
      {"feed_forward.up", at("fc1")},
      {"feed_forward.down", at("fc2")},
      {"feed_forward.norm", at("final_layer_norm")},
  };
  names.places["decoder_final"] = {{"norm", {{"decoder.final_layer_norm"}}}, {"projection", {{"decoder.project_out"}}}};
  StoredName output{{"/lm_head"}};
  if (is_head_tied) output.tied_names = {"decoder.embed_tokens"};
  names.places["head"] = {{"output", output}, {"classifier", {{"/score"}}}};
  names.extras = {"lm_head.", "score.", "decoder.version", "qa_outputs."};
  return names;
}

}  // namespace

Backbone plan_opt(const ConfigFile& config, const HeadRequest& request) {
  expect_flag(config, "enable_bias", true, "OPT without biases is not supported");
  expect_flag(config, "layer_norm_elementwise_affine", true, "norms without weights are not supported");
  refuse_altered_weights(config);
  const bool is_pre_norm = config.flag_or("do_layer_norm_before", true);

  BlockSpec block;
  block.width = config.integer("hidden_size", 1);
  block.num_heads = block.num_key_value_heads = config.integer("num_attention_heads", 1);
  block.head_width = read_head_width(config, block.width, block.num_heads, "num_attention_heads");
  block.feed_forward_width = config.integer("ffn_dim", 1);
  block.norm_place = is_pre_norm ? NormPlace::kBefore : NormPlace::kAfter;
  block.norm_epsilon = 1e-5;
  block.activation = read_activation(config, "activation_function", "relu");
  block.is_causal = true;
  block.hidden_dropout = config.probability_or("dropout", 0.1);
  block.attention_dropout = config.probability_or("attention_dropout", 0);

  Backbone backbone;
  backbone.family = std::make_shared<Family>(opt_names(config.flag_or("tie_word_embeddings", true)));
  backbone.width = block.width;
  backbone.vocab_size = config.integer("vocab_size", 1);
  backbone.max_positions = config.integer("max_position_embeddings", 1);
  backbone.initializer_range = config.positive_or("init_std", 0.02);
  backbone.pad_token_id = config.integer_or("pad_token_id", 0, 1);

  const auto token_width = config.integer_or("word_embed_proj_dim", 1, block.width);
  EmbeddingSpec embedding;
  embedding.vocab_size = backbone.vocab_size;
  embedding.width = block.width;
  embedding.token_width = token_width == block.width ? 0 : token_width;
  embedding.positions = Positions::kFollowMask;
  embedding.position_offset = kOptPositionOffset;
  embedding.num_positions = backbone.max_positions + kOptPositionOffset;
  embedding.pad_token_id = backbone.pad_token_id;
  embedding.has_norm = false;
  FinalSpec final;
  final.has_norm = is_pre_norm && !config.flag_or("_remove_final_layer_norm", false);
  final.width = block.width;
  final.projected_width = embedding.token_width;

  add_layer(backbone, LayerKind::kEmbedding, "embedding").embedding = embedding;
  add_blocks(backbone, "decoder", config.integer("num_hidden_layers", 1), block);
  if (final.has_norm || final.projected_width > 0) {
    add_layer(backbone, LayerKind::kFinal, "decoder_final").final = final;
  }
  add_causal_head(backbone, config, request).width = token_width;
  return backbone;
}

}  // namespace espalier::model
