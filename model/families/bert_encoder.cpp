// SPDX-License-Identifier: Apache-2.0
#include "model/families/bert_encoder.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <map>

#include "common/check.h"
#include "common/error.h"

namespace espalier::model {

namespace {

/// Role of a block's linear or norm -> stored name below "encoder.layer.<n>.".
const std::map<std::string, std::string, std::less<>> kBlockNames = {
    {"attention.query", "attention.self.query"},
    {"attention.key", "attention.self.key"},
    {"attention.value", "attention.self.value"},
    {"attention.output", "attention.output.dense"},
    {"attention.norm", "attention.output.LayerNorm"},
    {"feed_forward.up", "intermediate.dense"},
    {"feed_forward.down", "output.dense"},
    {"feed_forward.norm", "output.LayerNorm"},
};
const std::map<std::string, std::string, std::less<>> kEmbeddingNames = {
    {"token", "embeddings.word_embeddings"},
    {"position", "embeddings.position_embeddings"},
    {"token_type", "embeddings.token_type_embeddings"},
    {"norm", "embeddings.LayerNorm"},
};

/// What Espalier does not compute must not be ignored.
void refuse_unsupported(const ConfigFile& config) {
  if (config.text_or("position_embedding_type", "absolute") != "absolute") {
    config.refuse("position_embedding_type", "\"absolute\", the only kind of positions supported in this family");
  }
  for (const auto* key : {"is_decoder", "add_cross_attention"}) {
    if (config.flag_or(key, false)) config.refuse(key, "false: this family is supported as an encoder only");
  }
  for (const auto* key : {"quantization_config", "pruned_heads"}) {
    if (config.num_members(key) > 0)
      config.refuse(key, "none: such folders are not supported; save the plain model again");
  }
}

std::int64_t num_labels_of(const ConfigFile& config) {
  const auto named = config.num_members("id2label");
  const auto stated = config.integer_or("num_labels", 1, named > 0 ? named : 2);
  if (named > 0 && named != stated) {
    config.refuse("num_labels", fmt::format("{}, as many as id2label has members", named));
  }
  return stated;
}

BlockSpec read_block(const ConfigFile& config) {
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
  const auto activation = config.text_or("hidden_act", "gelu");
  try {
    spec.activation = activation_from(activation);
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}: hidden_act: {}", config.path().string(), error.what()));
  }
  return spec;
}

}  // namespace

StoredWeight BertEncoderFamily::stored_weight(const LayerPlan& layer, const std::string& role) const {
  if (layer.kind == LayerKind::kHead) return {.names = head_names(role), .is_optional = true};
  const auto dot = role.rfind('.');
  const auto part = role.substr(0, dot);
  const auto kind = role.substr(dot + 1);  // weight or bias
  const bool is_block = layer.kind == LayerKind::kBlock;
  const auto& table = is_block ? kBlockNames : kEmbeddingNames;
  const auto found = table.find(part);
  ESPALIER_CHECK(found != table.end(), "{} has no stored name for {}", layer.name, role);
  // The chain is embedding, block 0, block 1, ...
  const auto base = is_block ? fmt::format("encoder.layer.{}.{}", layer.index - 1, found->second) : found->second;
  StoredWeight stored{.names = with_prefix(base + "." + kind)};
  if (part.ends_with("norm")) {  // folders converted from the first TensorFlow checkpoints
    for (auto& name : with_prefix(base + (kind == "weight" ? ".gamma" : ".beta")))
      stored.names.push_back(std::move(name));
  }
  return stored;
}

bool BertEncoderFamily::is_known_extra(const std::string& stored_name) const {
  const std::string_view whole = stored_name;
  const auto name = whole.starts_with(prefix_) ? whole.substr(prefix_.size()) : whole;
  if (name == "embeddings.position_ids" || name == "embeddings.token_type_ids") return true;
  const auto beginnings = extra_beginnings();
  return std::any_of(beginnings.begin(), beginnings.end(),
                     [&](std::string_view text) { return name.starts_with(text); });
}

Backbone plan_bert_encoder(const ConfigFile& config, const HeadRequest& request) {
  refuse_unsupported(config);
  const auto block = read_block(config);

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

  HeadSpec head;
  head.width = block.width;
  head.num_labels = request.num_labels > 0 ? request.num_labels : num_labels_of(config);
  head.initializer_range = backbone.initializer_range;
  if (request.pooling == "mean") {
    head.pooling = Pooling::kMean;
    head.has_dense = false;
  } else {
    head.dropout = config.probability_or("classifier_dropout", block.hidden_dropout);
  }

  const auto add_layer = [&](LayerKind kind, std::string name) -> LayerPlan& {
    auto& layer = backbone.chain.emplace_back();
    layer.kind = kind;
    layer.name = std::move(name);
    layer.index = backbone.chain.size() - 1;
    return layer;
  };
  add_layer(LayerKind::kEmbedding, "embedding").embedding = embedding;
  const auto num_blocks = config.integer("num_hidden_layers", 1);
  for (std::int64_t number = 0; number < num_blocks; ++number) {
    add_layer(LayerKind::kBlock, fmt::format("encoder.{}", number)).block = block;
  }
  add_layer(LayerKind::kHead, "head").head = head;
  return backbone;
}

}  // namespace espalier::model
