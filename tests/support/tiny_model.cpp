// SPDX-License-Identifier: Apache-2.0
#include "tests/support/tiny_model.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "common/durable_file.h"
#include "model/backbone.h"
#include "model/initial.h"
#include "model/slice.h"
#include "model/weights.h"

namespace espalier::test {

namespace {

/// Large enough that attention is not uniform and activations bend.
constexpr double kDeviation = 0.2;

nlohmann::json encoder_config(const TinyModel& model) {
  nlohmann::json config = {
      {"model_type", model.family},
      {"vocab_size", model.vocab},
      {"hidden_size", model.width},
      {"num_hidden_layers", model.num_blocks},
      {"num_attention_heads", model.heads},
      {"intermediate_size", model.ff},
      {"hidden_act", model.activation},
      {"hidden_dropout_prob", model.dropout},
      {"attention_probs_dropout_prob", model.dropout},
      {"max_position_embeddings", model.max_positions},
      {"type_vocab_size", 2},
      {"layer_norm_eps", 1e-12},
      {"initializer_range", 0.02},
      {"pad_token_id", model.family == "bert" ? 0 : 1},
      {"id2label", nlohmann::json::object()},
  };
  if (model.family == "vit") {
    config.update({{"image_size", 8}, {"patch_size", 4}, {"num_channels", 1}});
  }
  for (std::int64_t label = 0; label < model.num_labels; ++label) {
    config["id2label"][std::to_string(label)] = "LABEL_" + std::to_string(label);
  }
  return config;
}

/// The keys by which each family calls the same things.
nlohmann::json language_model_config(const TinyModel& model) {
  nlohmann::json config = {{"model_type", model.family}, {"vocab_size", model.vocab}, {"tie_word_embeddings", true}};
  const auto add = [&](const nlohmann::json& keys) { config.update(keys); };
  if (model.family == "clip_t5") {
    config["model_type"] = "t5";
    add({{"feat_dim", 6}, {"pos_dim", 4}, {"n_images", 2}});
  }
  if (model.family == "t5" || model.family == "clip_t5") {
    add({{"architectures", {"T5ForConditionalGeneration"}},
         {"d_model", model.width},
         {"num_heads", model.heads},
         {"d_kv", model.width / model.heads},
         {"d_ff", model.ff},
         {"num_layers", model.num_blocks},
         {"num_decoder_layers", model.num_decoder_blocks},
         {"feed_forward_proj", "gated-gelu"},
         {"relative_attention_num_buckets", 8},
         {"relative_attention_max_distance", 16},
         {"dropout_rate", model.dropout}});
  } else if (model.family == "bart") {
    add({{"architectures", {"BartForConditionalGeneration"}},
         {"d_model", model.width},
         {"max_position_embeddings", model.max_positions},
         {"dropout", model.dropout},
         {"attention_dropout", model.dropout},
         {"activation_dropout", model.dropout}});
    for (const std::string stack : {"encoder", "decoder"}) {
      add({{stack + "_layers", stack == "encoder" ? model.num_blocks : model.num_decoder_blocks},
           {stack + "_attention_heads", model.heads},
           {stack + "_ffn_dim", model.ff}});
    }
  } else if (model.family == "opt") {
    add({{"architectures", {"OPTForCausalLM"}},
         {"hidden_size", model.width},
         {"word_embed_proj_dim", model.width / 2},
         {"num_hidden_layers", model.num_blocks},
         {"num_attention_heads", model.heads},
         {"ffn_dim", model.ff},
         {"max_position_embeddings", model.max_positions},
         {"dropout", model.dropout},
         {"attention_dropout", model.dropout}});
  } else if (model.family == "gpt2") {
    add({{"architectures", {"GPT2LMHeadModel"}},
         {"n_embd", model.width},
         {"n_layer", model.num_blocks},
         {"n_head", model.heads},
         {"n_inner", model.ff},
         {"n_positions", model.max_positions},
         {"resid_pdrop", model.dropout},
         {"embd_pdrop", model.dropout},
         {"attn_pdrop", model.dropout}});
  } else {
    add({{"architectures", {"LlamaForCausalLM"}},
         {"hidden_size", model.width},
         {"num_hidden_layers", model.num_blocks},
         {"num_attention_heads", model.heads},
         {"num_key_value_heads", 1},
         {"intermediate_size", model.ff},
         {"max_position_embeddings", model.max_positions},
         {"attention_dropout", model.dropout}});
  }
  return config;
}

bool is_encoder(const TinyModel& model) {
  return model.family == "bert" || model.family == "roberta" || model.family == "vit";
}

}  // namespace

std::filesystem::path write_tiny_model(const TinyModel& model, const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  write_file_durably(folder / "config.json",
                     (is_encoder(model) ? encoder_config(model) : language_model_config(model)).dump(2));
  const auto backbone = model::read_backbone(folder, {});
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  model::visit_stored_tensors(backbone, [&](const model::LayerPlan& layer, const model::StoredWeight& stored,
                                            const std::vector<std::int64_t>& shape) {
    const auto& name = stored.names.front();
    const bool is_pooled_head = layer.head && !layer.head->is_language_model;
    const bool is_pooler = name.find("pooler") != std::string::npos;
    if (is_pooled_head && !model.has_head && !is_pooler) return;
    auto value = model::normal_by_name(shape, kDeviation, /*seed=*/1, name);
    const bool is_norm = shape.size() == 1 && name.ends_with(".weight");
    if (is_norm) value.add_(1);
    tensors.emplace_back(name, value);
  });
  model::write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
  return folder;
}

}  // namespace espalier::test
