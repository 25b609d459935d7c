// SPDX-License-Identifier: Apache-2.0
// What decides sizes in the config.json of published models, so that whole models can be planned and counted without
// their folders.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace espalier::test {

namespace detail {

using nlohmann::json;

inline json t5(int width, int heads, int head_width, int feed_forward, int layers) {
  return {{"model_type", "t5"},
          {"architectures", {"T5ForConditionalGeneration"}},
          {"d_model", width},
          {"num_heads", heads},
          {"d_kv", head_width},
          {"d_ff", feed_forward},
          {"num_layers", layers},
          {"vocab_size", 32128},
          {"feed_forward_proj", "relu"},
          {"relative_attention_num_buckets", 32}};
}

/// T5-base that reads the features of two images.
inline json clip_t5() {
  json config = t5(768, 12, 64, 3072, 12);
  config.update({{"feat_dim", 2048}, {"pos_dim", 4}, {"n_images", 2}});
  return config;
}

inline json encoder(const char* type, int width, int heads, int layers) {
  const bool is_bert = std::string(type) == "bert";
  return {{"model_type", type},
          {"hidden_size", width},
          {"num_attention_heads", heads},
          {"intermediate_size", 4 * width},
          {"num_hidden_layers", layers},
          {"vocab_size", is_bert ? 30522 : 50265},
          {"max_position_embeddings", is_bert ? 512 : 514},
          {"type_vocab_size", is_bert ? 2 : 1},
          {"pad_token_id", is_bert ? 0 : 1}};
}

inline json bart() {
  return {{"model_type", "bart"},          {"d_model", 1024},
          {"encoder_layers", 12},          {"decoder_layers", 12},
          {"encoder_attention_heads", 16}, {"decoder_attention_heads", 16},
          {"encoder_ffn_dim", 4096},       {"decoder_ffn_dim", 4096},
          {"vocab_size", 50265},           {"max_position_embeddings", 1024}};
}

inline json opt(int width, int layers) {
  return {{"model_type", "opt"},
          {"hidden_size", width},
          {"num_attention_heads", 32},
          {"ffn_dim", 4 * width},
          {"num_hidden_layers", layers},
          {"vocab_size", 50272},
          {"max_position_embeddings", 2048},
          {"word_embed_proj_dim", width},
          {"do_layer_norm_before", true}};
}

inline json gpt2(int width, int heads, int layers) {
  return {{"model_type", "gpt2"}, {"n_embd", width},     {"n_head", heads},
          {"n_layer", layers},    {"n_positions", 1024}, {"vocab_size", 50257}};
}

inline json llama() {
  return {{"model_type", "llama"},     {"hidden_size", 4096},     {"intermediate_size", 11008},
          {"num_attention_heads", 32}, {"num_hidden_layers", 32}, {"vocab_size", 32000}};
}

inline json vit(int num_labels) {
  return {{"model_type", "vit"},     {"hidden_size", 768}, {"intermediate_size", 3072}, {"num_attention_heads", 12},
          {"num_hidden_layers", 12}, {"image_size", 224},  {"patch_size", 16},          {"num_labels", num_labels}};
}

}  // namespace detail

/// config.json of a model by its name on the hub, and of CLIP-T5 ("clip-t5"). Throws: std::out_of_range for a name that
/// is not here.
inline nlohmann::json published_model(const std::string& name) {
  static const std::map<std::string, nlohmann::json> all = {
      {"t5-base", detail::t5(768, 12, 64, 3072, 12)},
      {"t5-large", detail::t5(1024, 16, 64, 4096, 24)},
      {"t5-3b", detail::t5(1024, 32, 128, 16384, 24)},
      {"clip-t5", detail::clip_t5()},
      {"bert-base-uncased", detail::encoder("bert", 768, 12, 12)},
      {"roberta-base", detail::encoder("roberta", 768, 12, 12)},
      {"roberta-large", detail::encoder("roberta", 1024, 16, 24)},
      {"bart-large", detail::bart()},
      {"opt-1.3b", detail::opt(2048, 24)},
      {"opt-6.7b", detail::opt(4096, 32)},
      {"gpt2", detail::gpt2(768, 12, 12)},
      {"gpt2-medium", detail::gpt2(1024, 16, 24)},
      {"gpt2-large", detail::gpt2(1280, 20, 36)},
      {"Llama-2-7b", detail::llama()},
      {"vit-base-patch16-224", detail::vit(1000)},
      {"vit-base-patch16-224-in21k", detail::vit(2)},
  };
  return all.at(name);
}

}  // namespace espalier::test
