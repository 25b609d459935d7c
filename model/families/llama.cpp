// SPDX-License-Identifier: Apache-2.0
// Llama (Touvron et al., 2023) and models of its type: a pre-norm causal stack with RMS norms, rotary positions, shared
// key/value heads and a gated feed-forward.
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/families/families.h"
#include "model/families/plan_parts.h"

namespace espalier::model {

namespace {

FamilyNames llama_names(const std::string& model_type, bool is_head_tied) {
  FamilyNames names;
  names.model_type = model_type;
  names.prefixes = {"model.", ""};
  names.places["embedding"] = {{"token", {{"embed_tokens"}}}};
  const auto at = [](const std::string& name) { return StoredName{{"layers.{}." + name}}; };
  names.places["decoder"] = {
      {"attention.query", at("self_attn.q_proj")},
      {"attention.key", at("self_attn.k_proj")},
      {"attention.value", at("self_attn.v_proj")},
      {"attention.output", at("self_attn.o_proj")},
      {"attention.norm", at("input_layernorm")},
      {"feed_forward.gate", at("mlp.gate_proj")},
      {"feed_forward.up", at("mlp.up_proj")},
      {"feed_forward.down", at("mlp.down_proj")},
      {"feed_forward.norm", at("post_attention_layernorm")},
  };
  names.places["decoder_final"] = {{"norm", {{"norm"}}}};
  StoredName output{{"/lm_head"}};
  if (is_head_tied) output.tied_names = {"embed_tokens"};
  names.places["head"] = {{"output", output}, {"classifier", {{"/score"}}}};
  names.extras = {"lm_head.", "score.", "qa_outputs."};
  names.extra_ends = {".rotary_emb.inv_freq"};
  return names;
}

/// Llama 3.1: long wavelengths are stretched by `factor`, short ones stay, those between are blended.
void stretch_like_llama3(const ConfigFile& scaling, RotarySpec& rotary) {
  const double factor = scaling.positive("factor");
  const double low = scaling.positive("low_freq_factor"), high = scaling.positive("high_freq_factor");
  const double context = scaling.positive("original_max_position_embeddings");
  if (high <= low) scaling.refuse("high_freq_factor", fmt::format("more than low_freq_factor, which is {}", low));
  for (double& frequency : rotary.frequencies) {
    const double turns = context * frequency / (2 * std::numbers::pi);  // within the original context
    const double blend = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    frequency = (1 - blend) * frequency / factor + blend * frequency;
  }
}

RotarySpec read_rotary(const ConfigFile& config, std::int64_t head_width) {
  // Written by transformers 5 as rope_parameters, before that as rope_theta and rope_scaling.
  const auto* key = config.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const auto scaling = config.object(key);
  const double base = scaling.positive_or("rope_theta", config.positive_or("rope_theta", 10000));
  if (head_width % 2 != 0) config.refuse("head_dim", "an even width of the heads, whose halves turn together");
  if (scaling.positive_or("partial_rotary_factor", config.positive_or("partial_rotary_factor", 1)) != 1) {
    config.refuse("partial_rotary_factor", "1: heads that turn in part are not supported");
  }
  RotarySpec rotary;
  for (std::int64_t i = 0; i < head_width; i += 2) {
    rotary.frequencies.push_back(std::pow(base, -static_cast<double>(i) / static_cast<double>(head_width)));
  }
  const auto* type_key = scaling.has("rope_type") ? "rope_type" : "type";
  const auto type = scaling.text_or(type_key, "default");
  if (type == "linear") {
    const double factor = scaling.positive("factor");
    for (double& frequency : rotary.frequencies) frequency /= factor;
  } else if (type == "llama3") {
    stretch_like_llama3(scaling, rotary);
  } else if (type != "default") {
    scaling.refuse(type_key, "default, linear or llama3, the kinds supported");
  }
  return rotary;
}

}  // namespace

Backbone plan_llama(const ConfigFile& config, const HeadRequest& request) {
  refuse_altered_weights(config);
  if (config.has("sliding_window")) config.refuse("sliding_window", "null: attention windows are not supported");

  BlockSpec block;
  block.width = config.integer("hidden_size", 1);
  block.num_heads = config.integer("num_attention_heads", 1);
  block.num_key_value_heads = config.integer_or("num_key_value_heads", 1, block.num_heads);
  if (block.num_heads % block.num_key_value_heads != 0) {
    config.refuse("num_key_value_heads", fmt::format("a divisor of num_attention_heads, which is {}", block.num_heads));
  }
  block.head_width = config.has("head_dim")
                         ? config.integer("head_dim", 1)
                         : read_head_width(config, block.width, block.num_heads, "num_attention_heads");
  block.feed_forward_width = config.integer("intermediate_size", 1);
  block.norm_kind = NormKind::kRmsNorm;
  block.norm_place = NormPlace::kBefore;
  block.norm_epsilon = config.positive_or("rms_norm_eps", 1e-6);
  block.activation = read_activation(config, "hidden_act", "silu");
  block.is_gated = true;
  block.has_attention_bias = block.has_output_bias = config.flag_or("attention_bias", false);
  block.has_feed_forward_bias = config.flag_or("mlp_bias", false);
  block.is_causal = true;
  block.rotary = read_rotary(config, block.head_width);
  block.attention_dropout = config.probability_or("attention_dropout", 0);

  Backbone backbone;
  backbone.family = std::make_shared<Family>(
      llama_names(config.text_or("model_type", ""), config.flag_or("tie_word_embeddings", false)));
  backbone.width = block.width;
  backbone.vocab_size = config.integer("vocab_size", 1);
  backbone.max_positions = config.integer_or("max_position_embeddings", 1, 2048);
  backbone.initializer_range = config.positive_or("initializer_range", 0.02);
  backbone.pad_token_id = config.integer_or("pad_token_id", 0, 0);

  EmbeddingSpec embedding;
  embedding.vocab_size = backbone.vocab_size;
  embedding.width = block.width;
  embedding.positions = Positions::kNone;
  embedding.pad_token_id = config.integer_or("pad_token_id", 0, -1);
  embedding.has_norm = false;
  FinalSpec final;
  final.norm_kind = NormKind::kRmsNorm;
  final.norm_epsilon = block.norm_epsilon;
  final.width = block.width;

  add_layer(backbone, LayerKind::kEmbedding, "embedding").embedding = embedding;
  add_blocks(backbone, "decoder", config.integer("num_hidden_layers", 1), block);
  add_layer(backbone, LayerKind::kFinal, "decoder_final").final = final;
  add_causal_head(backbone, config, request);
  return backbone;
}

}  // namespace espalier::model
