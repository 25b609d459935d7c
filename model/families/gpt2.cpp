// SPDX-License-Identifier: Apache-2.0
// GPT-2 (Radford et al., 2019): a pre-norm causal stack. Its linears are stored transposed, and query, key and value in
// one; they load as three plain linears, so that methods see what they see everywhere.
#include <cmath>

#include "model/families/families.h"
#include "model/families/plan_parts.h"

namespace espalier::model {

namespace {

FamilyNames gpt2_names(bool is_head_tied) {
  FamilyNames names;
  names.model_type = "gpt2";
  names.prefixes = {"transformer.", ""};
  names.places["embedding"] = {{"token", {{"wte"}}}, {"position", {{"wpe"}}}};
  const auto linear = [](const std::string& name, std::int64_t part = 0, std::int64_t num_parts = 1) {
    StoredName stored{{"h.{}." + name}};
    stored.is_transposed = true;
    stored.part = part;
    stored.num_parts = num_parts;
    return stored;
  };
  names.places["decoder"] = {
      {"attention.query", linear("attn.c_attn", 0, 3)},
      {"attention.key", linear("attn.c_attn", 1, 3)},
      {"attention.value", linear("attn.c_attn", 2, 3)},
      {"attention.output", linear("attn.c_proj")},
      {"attention.norm", {{"h.{}.ln_1"}}},
      {"feed_forward.up", linear("mlp.c_fc")},
      {"feed_forward.down", linear("mlp.c_proj")},
      {"feed_forward.norm", {{"h.{}.ln_2"}}},
  };
  names.places["decoder_final"] = {{"norm", {{"ln_f"}}}};
  StoredName output{{"/lm_head"}};
  if (is_head_tied) output.tied_names = {"wte"};
  names.places["head"] = {{"output", output}, {"classifier", {{"/score"}}}};
  names.extras = {"lm_head.", "score.", "multiple_choice_head."};
  names.extra_ends = {".attn.bias", ".attn.masked_bias"};
  return names;
}

}  // namespace

Backbone plan_gpt2(const ConfigFile& config, const HeadRequest& request) {
  expect_flag(config, "add_cross_attention", false, "GPT-2 is supported as a model of its own, not as a decoder");
  refuse_altered_weights(config);

  BlockSpec block;
  block.width = config.integer("n_embd", 1);
  block.num_heads = block.num_key_value_heads = config.integer("n_head", 1);
  block.head_width = read_head_width(config, block.width, block.num_heads, "n_head");
  block.feed_forward_width = config.integer_or("n_inner", 1, 4 * block.width);
  block.norm_place = NormPlace::kBefore;
  block.norm_epsilon = config.positive_or("layer_norm_epsilon", 1e-5);
  block.activation = read_activation(config, "activation_function", "gelu_new");
  block.is_causal = true;
  block.hidden_dropout = config.probability_or("resid_pdrop", 0.1);
  block.attention_dropout = config.probability_or("attn_pdrop", 0.1);
  const bool is_scaled = config.flag_or("scale_attn_weights", true);
  const bool is_scaled_by_depth = config.flag_or("scale_attn_by_inverse_layer_idx", false);

  Backbone backbone;
  backbone.family = std::make_shared<Family>(gpt2_names(config.flag_or("tie_word_embeddings", true)));
  backbone.width = block.width;
  backbone.vocab_size = config.integer("vocab_size", 1);
  backbone.max_positions = config.integer("n_positions", 1);
  backbone.initializer_range = config.positive_or("initializer_range", 0.02);
  backbone.pad_token_id = config.integer_or("pad_token_id", 0, 0);

  EmbeddingSpec embedding;
  embedding.vocab_size = backbone.vocab_size;
  embedding.width = block.width;
  embedding.num_positions = backbone.max_positions;
  embedding.pad_token_id = -1;
  embedding.has_norm = false;
  embedding.dropout = config.probability_or("embd_pdrop", 0.1);
  FinalSpec final;
  final.norm_epsilon = block.norm_epsilon;
  final.width = block.width;

  add_layer(backbone, LayerKind::kEmbedding, "embedding").embedding = embedding;
  const auto first = backbone.chain.size();
  add_blocks(backbone, "decoder", config.integer("n_layer", 1), block);
  for (auto layer = first; layer < backbone.chain.size(); ++layer) {
    const double width_scale = is_scaled ? 1 / std::sqrt(static_cast<double>(block.head_width)) : 1;
    const double depth = static_cast<double>(backbone.chain[layer].number + 1);
    backbone.chain[layer].block->attention_scale = is_scaled_by_depth ? width_scale / depth : width_scale;
  }
  add_layer(backbone, LayerKind::kFinal, "decoder_final").final = final;
  add_causal_head(backbone, config, request);
  return backbone;
}

}  // namespace espalier::model
