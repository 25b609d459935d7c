// SPDX-License-Identifier: Apache-2.0
// T5 (Raffel et al., JMLR 2020), its version 1.1 and Flan-T5: pre-norm encoder and decoder with RMS norms, no biases,
// no scale on the scores, and a position bias by distance that the first block of each stack owns. CLIP-T5 (Sung et
// al., CVPR 2022) is a T5 whose encoder reads visual tokens behind the text.
#include <spdlog/fmt/fmt.h>

#include <cmath>

#include "model/families/families.h"
#include "model/families/plan_parts.h"

namespace espalier::model {

namespace {

/// "relu", "gated-gelu" (which means gelu_new), "gated-silu", ...
void read_feed_forward(const ConfigFile& config, BlockSpec& spec) {
  const auto name = config.text_or("feed_forward_proj", "relu");
  spec.is_gated = name.starts_with("gated-");
  const auto activation = spec.is_gated ? name.substr(6) : name;
  spec.activation = parse_activation(config, "feed_forward_proj", name == "gated-gelu" ? "gelu_new" : activation);
}

BlockSpec read_t5_block(const ConfigFile& config) {
  BlockSpec spec;
  spec.width = config.integer("d_model", 1);
  spec.num_heads = spec.num_key_value_heads = config.integer("num_heads", 1);
  spec.head_width = config.integer("d_kv", 1);
  spec.feed_forward_width = config.integer("d_ff", 1);
  spec.norm_kind = NormKind::kRmsNorm;
  spec.norm_place = NormPlace::kBefore;
  spec.norm_epsilon = config.positive_or("layer_norm_epsilon", 1e-6);
  spec.has_attention_bias = spec.has_output_bias = spec.has_feed_forward_bias = false;
  spec.attention_scale = 1;
  spec.has_position_bias = true;
  spec.hidden_dropout = spec.attention_dropout = spec.activation_dropout = config.probability_or("dropout_rate", 0.1);
  read_feed_forward(config, spec);
  return spec;
}

RelativeBiasSpec read_relative_bias(const ConfigFile& config, bool is_bidirectional) {
  RelativeBiasSpec bias;
  bias.num_buckets = config.integer_or("relative_attention_num_buckets", 4, 32);
  bias.max_distance = config.integer_or("relative_attention_max_distance", 1, 128);
  bias.is_bidirectional = is_bidirectional;
  const auto num_exact = bias.num_buckets / (is_bidirectional ? 4 : 2);
  if (bias.max_distance <= num_exact) {
    config.refuse("relative_attention_max_distance",
                  fmt::format("more than {}, the distances with own buckets", num_exact));
  }
  return bias;
}

/// Names of one stack: "encoder" or "decoder", whose feed-forward is layer `feed_forward`.
RoleNames block_names(const std::string& stack, const std::string& feed_forward, bool is_gated) {
  const auto at = [&](const std::string& name) { return StoredName{{stack + ".block.{}.layer." + name}}; };
  return {
      {"attention.query", at("0.SelfAttention.q")},
      {"attention.key", at("0.SelfAttention.k")},
      {"attention.value", at("0.SelfAttention.v")},
      {"attention.output", at("0.SelfAttention.o")},
      {"attention.norm", at("0.layer_norm")},
      {"attention.relative_bias", at("0.SelfAttention.relative_attention_bias")},
      {"cross_attention.query", at("1.EncDecAttention.q")},
      {"cross_attention.key", at("1.EncDecAttention.k")},
      {"cross_attention.value", at("1.EncDecAttention.v")},
      {"cross_attention.output", at("1.EncDecAttention.o")},
      {"cross_attention.norm", at("1.layer_norm")},
      {"feed_forward.gate", at(feed_forward + ".DenseReluDense.wi_0")},
      {"feed_forward.up", at(feed_forward + (is_gated ? ".DenseReluDense.wi_1" : ".DenseReluDense.wi"))},
      {"feed_forward.down", at(feed_forward + ".DenseReluDense.wo")},
      {"feed_forward.norm", at(feed_forward + ".layer_norm")},
  };
}

/// A folder with VL-T5's keys (CLIP-T5) reads images too; only the published form of their embedding is supported.
std::optional<VisualEmbeddingSpec> read_visual(const ConfigFile& config, const BlockSpec& block) {
  if (!config.has("feat_dim")) return {};
  VisualEmbeddingSpec visual;
  visual.feature_width = config.integer("feat_dim", 1);
  visual.num_images = config.integer_or("n_images", 1, 2);
  visual.width = block.width;
  visual.norm_epsilon = block.norm_epsilon;
  visual.has_order = config.flag_or("use_vis_order_embedding", true);
  if (config.integer_or("pos_dim", 1, 4) != 4) {
    config.refuse("pos_dim", "4, the corners of a box (their area is computed)");
  }
  expect_flag(config, "use_vis_layer_norm", true, "features and boxes each have a norm");
  expect_flag(config, "individual_vis_layer_norm", true, "features and boxes each have a norm");
  expect_flag(config, "share_vis_lang_layer_norm", false, "the norms of features and boxes are their own");
  if (config.integer_or("additional_visual_embedding_layers", 0, 0) != 0) {
    config.refuse("additional_visual_embedding_layers", "0, one linear map of the features");
  }
  return visual;
}

FamilyNames t5_names(bool is_gated, bool is_head_tied, bool is_visual) {
  FamilyNames names;
  names.model_type = "t5";
  names.prefixes = {"", "transformer."};
  const std::vector<std::string> copies = {"encoder.embed_tokens", "decoder.embed_tokens"};
  names.places["embedding"] = names.places["decoder_embedding"] = {{"token", {{"shared"}, copies}}};
  if (is_visual) {
    const std::string visual = "encoder.visual_embedding.";
    names.places["embedding"].insert({{"visual.features", {{visual + "feat_embedding.0"}}},
                                      {"visual.features_norm", {{visual + "feat_embedding.1"}}},
                                      {"visual.boxes", {{visual + "absolute_vis_pos_embedding.0"}}},
                                      {"visual.boxes_norm", {{visual + "absolute_vis_pos_embedding.1"}}},
                                      {"visual.image_order", {{visual + "img_order_embedding"}}}});
  }
  names.places["encoder"] = block_names("encoder", "1", is_gated);
  names.places["decoder"] = block_names("decoder", "2", is_gated);
  names.places["encoder_final"] = {{"norm", {{"encoder.final_layer_norm"}}}};
  names.places["decoder_final"] = {{"norm", {{"decoder.final_layer_norm"}}}};
  StoredName output{{"/lm_head"}};
  if (is_head_tied) output.tied_names = {"shared", "encoder.embed_tokens", "decoder.embed_tokens"};
  names.places["head"] = {{"output", output},
                          {"dense", {{"/classification_head.dense"}}},
                          {"classifier", {{"/classification_head.out_proj"}}}};
  names.extras = {"encoder.embed_tokens.",
                  "encoder.visual_embedding.obj_order_embedding.",
                  "decoder.embed_tokens.",
                  "lm_head.",
                  "classification_head.",
                  "qa_outputs.",
                  "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias."};
  return names;
}

}  // namespace

Backbone plan_t5(const ConfigFile& config, const HeadRequest& request) {
  expect_flag(config, "is_encoder_decoder", true, "T5 is supported with both of its stacks");
  refuse_altered_weights(config);
  const auto block = read_t5_block(config);
  // Version 1.0 scales what its tied head reads; the flag says so also where the file has a head of its own.
  const bool is_tied = config.flag_or("tie_word_embeddings", true);
  const bool is_scaled = config.flag_or("scale_decoder_outputs", is_tied);

  Backbone backbone;
  backbone.family = std::make_shared<Family>(t5_names(block.is_gated, is_tied, config.has("feat_dim")));
  backbone.width = block.width;
  backbone.vocab_size = config.integer("vocab_size", 1);
  backbone.initializer_range = 0.05 * config.positive_or("initializer_factor", 1.0);
  backbone.pad_token_id = config.integer_or("pad_token_id", 0, 0);
  backbone.decoder_start_token_id = config.integer_or("decoder_start_token_id", 0, backbone.pad_token_id);

  EmbeddingSpec embedding;
  embedding.vocab_size = backbone.vocab_size;
  embedding.width = block.width;
  embedding.positions = Positions::kNone;
  embedding.pad_token_id = -1;
  embedding.has_norm = false;
  embedding.dropout = block.hidden_dropout;
  FinalSpec final;
  final.norm_kind = NormKind::kRmsNorm;
  final.norm_epsilon = block.norm_epsilon;
  final.width = block.width;
  final.dropout = block.hidden_dropout;

  const auto add_stack = [&](const std::string& name, Stack stack, std::int64_t count, const BlockSpec& spec) {
    add_layer(backbone, LayerKind::kEmbedding, stack == Stack::kDecoder ? "decoder_embedding" : "embedding", stack)
        .embedding = embedding;
    if (stack == Stack::kEncoder) backbone.chain.back().embedding->visual = read_visual(config, block);
    const auto first = backbone.chain.size();
    add_blocks(backbone, name, count, spec, stack);
    backbone.chain[first].block->relative_bias = read_relative_bias(config, stack == Stack::kEncoder);
    add_layer(backbone, LayerKind::kFinal, name + "_final", stack).final = final;
  };
  const auto num_blocks = config.integer("num_layers", 1);
  add_stack("encoder", Stack::kEncoder, num_blocks, block);
  auto decoder_block = block;
  decoder_block.is_causal = true;
  decoder_block.has_cross_attention = true;
  add_stack("decoder", Stack::kDecoder, config.integer_or("num_decoder_layers", 1, num_blocks), decoder_block);

  if (wants_language_model(config, request, /*is_usual=*/true)) {
    auto& head = add_language_model_head(backbone, Stack::kDecoder);
    head.has_bias = false;
    head.input_scale = is_scaled ? 1 / std::sqrt(static_cast<double>(block.width)) : 1;
  } else {
    auto& head = add_sequence_head(backbone, config, request);
    head.eos_token_id = config.integer_or("eos_token_id", 0, 1);
  }
  return backbone;
}

}  // namespace espalier::model
