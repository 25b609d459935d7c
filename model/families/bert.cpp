// SPDX-License-Identifier: Apache-2.0
// BERT (Devlin et al., NAACL 2019) and RoBERTa (Liu et al., 2019): post-norm encoders. They differ in the prefix of the
// stored names, in positions and in the head.
#include <spdlog/fmt/fmt.h>

#include "model/families/families.h"
#include "model/families/plan_parts.h"

namespace espalier::model {

namespace {

BlockSpec read_encoder_block(const ConfigFile& config) {
  BlockSpec spec;
  spec.width = config.integer("hidden_size", 1);
  spec.num_heads = spec.num_key_value_heads = config.integer("num_attention_heads", 1);
  if (spec.width % spec.num_heads != 0) {
    config.refuse("num_attention_heads", fmt::format("a divisor of hidden_size, which is {}", spec.width));
  }
  spec.head_width = spec.width / spec.num_heads;
  spec.feed_forward_width = config.integer("intermediate_size", 1);
  spec.norm_epsilon = config.positive_or("layer_norm_eps", 1e-12);
  spec.hidden_dropout = config.probability_or("hidden_dropout_prob", 0.1);
  spec.attention_dropout = config.probability_or("attention_probs_dropout_prob", 0.1);
  spec.activation = read_activation(config, "hidden_act", "gelu");
  return spec;
}

FamilyNames encoder_names() {
  FamilyNames names;
  names.places["embedding"] = {
      {"token", {{"embeddings.word_embeddings"}}},
      {"position", {{"embeddings.position_embeddings"}}},
      {"token_type", {{"embeddings.token_type_embeddings"}}},
      {"norm", {{"embeddings.LayerNorm"}}},
  };
  names.places["encoder"] = {
      {"attention.query", {{"encoder.layer.{}.attention.self.query"}}},
      {"attention.key", {{"encoder.layer.{}.attention.self.key"}}},
      {"attention.value", {{"encoder.layer.{}.attention.self.value"}}},
      {"attention.output", {{"encoder.layer.{}.attention.output.dense"}}},
      {"attention.norm", {{"encoder.layer.{}.attention.output.LayerNorm"}}},
      {"feed_forward.up", {{"encoder.layer.{}.intermediate.dense"}}},
      {"feed_forward.down", {{"encoder.layer.{}.output.dense"}}},
      {"feed_forward.norm", {{"encoder.layer.{}.output.LayerNorm"}}},
  };
  names.has_old_norm_names = true;
  names.extras = {"embeddings.position_ids", "embeddings.token_type_ids", "pooler.dense.", "classifier.",
                  "qa_outputs."};
  return names;
}

/// Reads config.json into embedding, blocks and head, all as BERT has them.
Backbone plan_encoder(const ConfigFile& config, const HeadRequest& request) {
  expect_text(config, "position_embedding_type", "absolute");
  for (const auto* key : {"is_decoder", "add_cross_attention"}) {
    expect_flag(config, key, false, "this family is supported as an encoder only");
  }
  refuse_altered_weights(config);
  if (wants_language_model(config, request, /*is_usual=*/false)) {
    config.refuse("model_type", "a model that generates text (T5, BART, OPT, GPT-2, Llama) for this task");
  }
  const auto block = read_encoder_block(config);

  EmbeddingSpec embedding;
  embedding.vocab_size = config.integer("vocab_size", 1);
  embedding.width = block.width;
  embedding.num_positions = config.integer("max_position_embeddings", 1);
  embedding.num_token_types = config.integer_or("type_vocab_size", 0, 2);
  embedding.pad_token_id = config.integer_or("pad_token_id", 0, 0);
  if (embedding.pad_token_id >= embedding.vocab_size) {
    config.refuse("pad_token_id", fmt::format("less than vocab_size, which is {}", embedding.vocab_size));
  }
  embedding.norm_epsilon = block.norm_epsilon;
  embedding.dropout = block.hidden_dropout;

  Backbone backbone;
  backbone.width = block.width;
  backbone.vocab_size = embedding.vocab_size;
  backbone.max_positions = embedding.num_positions;
  backbone.initializer_range = config.positive_or("initializer_range", 0.02);
  backbone.pad_token_id = embedding.pad_token_id;

  HeadSpec head;
  head.width = block.width;
  head.num_labels = read_num_labels(config, request);
  head.initializer_range = backbone.initializer_range;
  if (request.pooling == "mean") {
    head.pooling = Pooling::kMean;
    head.has_dense = false;
  } else {
    head.dropout = config.probability_or("classifier_dropout", block.hidden_dropout);
  }
  add_layer(backbone, LayerKind::kEmbedding, "embedding").embedding = embedding;
  add_blocks(backbone, "encoder", config.integer("num_hidden_layers", 1), block);
  add_layer(backbone, LayerKind::kHead, "head").head = head;
  return backbone;
}

}  // namespace

Backbone plan_bert(const ConfigFile& config, const HeadRequest& request) {
  auto backbone = plan_encoder(config, request);
  auto names = encoder_names();
  names.model_type = "bert";
  names.prefixes = {"bert.", ""};
  backbone.chain.back().head->dense_is_pooler = backbone.chain.back().head->has_dense;
  names.places["head"] = {{"dense", {{"pooler.dense"}}}, {"classifier", {{"/classifier"}}}};
  names.extras.push_back("cls.");
  backbone.family = std::make_shared<Family>(std::move(names));
  return backbone;
}

Backbone plan_roberta(const ConfigFile& config, const HeadRequest& request) {
  auto backbone = plan_encoder(config, request);
  auto names = encoder_names();
  names.model_type = config.text_or("model_type", "");
  names.prefixes = {"roberta.", ""};
  names.places["head"] = {{"dense", {{"/classifier.dense"}}}, {"classifier", {{"/classifier.out_proj"}}}};
  names.extras.push_back("lm_head.");
  backbone.family = std::make_shared<Family>(std::move(names));

  auto& embedding = *backbone.chain.front().embedding;
  // Positions start behind the padding's: pad_token_id + 1.
  embedding.positions = Positions::kFollowPadding;
  embedding.pad_token_id = config.integer_or("pad_token_id", 0, 1);
  backbone.pad_token_id = embedding.pad_token_id;
  backbone.max_positions = embedding.num_positions - embedding.pad_token_id - 1;
  if (backbone.max_positions < 1) {
    config.refuse("max_position_embeddings",
                  fmt::format("more than pad_token_id + 1, which is {}", embedding.pad_token_id + 1));
  }
  auto& head = *backbone.chain.back().head;
  head.drops_pooled = head.has_dense;
  return backbone;
}

}  // namespace espalier::model
