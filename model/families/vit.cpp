// SPDX-License-Identifier: Apache-2.0
// ViT (Dosovitskiy et al., ICLR 2021): a pre-norm encoder over image patches behind a class token.
#include "model/families/families.h"
#include "model/families/plan_parts.h"

namespace espalier::model {

namespace {

FamilyNames vit_names() {
  FamilyNames names;
  names.model_type = "vit";
  names.prefixes = {"vit.", ""};
  const auto whole = [](const std::string& name) {
    StoredName stored{{name}};
    stored.is_whole = true;
    return stored;
  };
  names.places["embedding"] = {{"projection", {{"embeddings.patch_embeddings.projection"}}},
                               {"class_token.weight", whole("embeddings.cls_token")},
                               {"position.weight", whole("embeddings.position_embeddings")}};
  names.places["encoder"] = {
      {"attention.query", {{"encoder.layer.{}.attention.attention.query"}}},
      {"attention.key", {{"encoder.layer.{}.attention.attention.key"}}},
      {"attention.value", {{"encoder.layer.{}.attention.attention.value"}}},
      {"attention.output", {{"encoder.layer.{}.attention.output.dense"}}},
      {"attention.norm", {{"encoder.layer.{}.layernorm_before"}}},
      {"feed_forward.up", {{"encoder.layer.{}.intermediate.dense"}}},
      {"feed_forward.down", {{"encoder.layer.{}.output.dense"}}},
      {"feed_forward.norm", {{"encoder.layer.{}.layernorm_after"}}},
  };
  names.places["encoder_final"] = {{"norm", {{"layernorm"}}}};
  names.places["head"] = {{"classifier", {{"/classifier"}}}};
  names.extras = {"pooler.dense.", "classifier.", "embeddings.mask_token", "decoder."};
  return names;
}

}  // namespace

Backbone plan_vit(const ConfigFile& config, const HeadRequest& request) {
  refuse_altered_weights(config);
  if (wants_language_model(config, request, /*is_usual=*/false)) {
    config.refuse("model_type", "a model that generates text (T5, BART, OPT, GPT-2, Llama) for this task");
  }
  BlockSpec block;
  block.width = config.integer("hidden_size", 1);
  block.num_heads = block.num_key_value_heads = config.integer("num_attention_heads", 1);
  block.head_width = read_head_width(config, block.width, block.num_heads, "num_attention_heads");
  block.feed_forward_width = config.integer("intermediate_size", 1);
  block.norm_place = NormPlace::kBefore;
  block.norm_epsilon = config.positive_or("layer_norm_eps", 1e-12);
  block.activation = read_activation(config, "hidden_act", "gelu");
  block.has_attention_bias = config.flag_or("qkv_bias", true);
  block.hidden_dropout = config.probability_or("hidden_dropout_prob", 0);
  block.attention_dropout = config.probability_or("attention_probs_dropout_prob", 0);

  PatchEmbeddingSpec patches;
  patches.image_size = config.integer_or("image_size", 1, 224);
  patches.patch_size = config.integer_or("patch_size", 1, 16);
  patches.num_channels = config.integer_or("num_channels", 1, 3);
  patches.width = block.width;
  patches.dropout = block.hidden_dropout;
  if (patches.image_size < patches.patch_size) config.refuse("patch_size", "at most image_size");

  Backbone backbone;
  backbone.family = std::make_shared<Family>(vit_names());
  backbone.width = block.width;
  backbone.initializer_range = config.positive_or("initializer_range", 0.02);
  FinalSpec final;
  final.norm_epsilon = block.norm_epsilon;
  final.width = block.width;
  HeadSpec head;
  head.pooling = request.pooling == "mean" ? Pooling::kMean : Pooling::kFirstToken;
  head.first_pooled = 1;  // behind the class token
  head.width = block.width;
  head.num_labels = read_num_labels(config, request);
  head.has_dense = false;
  head.initializer_range = backbone.initializer_range;

  add_layer(backbone, LayerKind::kPatchEmbedding, "embedding").patch_embedding = patches;
  add_blocks(backbone, "encoder", config.integer("num_hidden_layers", 1), block);
  add_layer(backbone, LayerKind::kFinal, "encoder_final").final = final;
  add_layer(backbone, LayerKind::kHead, "head").head = head;
  return backbone;
}

}  // namespace espalier::model
