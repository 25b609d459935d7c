// SPDX-License-Identifier: Apache-2.0
#include "model/families/plan_parts.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <utility>

#include "common/error.h"

namespace espalier::model {

LayerPlan& add_layer(Backbone& backbone, LayerKind kind, std::string name, Stack stack) {
  auto& layer = backbone.chain.emplace_back();
  layer.kind = kind;
  layer.stack = stack;
  layer.name = std::move(name);
  layer.index = backbone.chain.size() - 1;
  return layer;
}

void add_blocks(Backbone& backbone, const std::string& name, std::int64_t count, const BlockSpec& block, Stack stack) {
  for (std::int64_t number = 0; number < count; ++number) {
    auto& layer = add_layer(backbone, LayerKind::kBlock, fmt::format("{}.{}", name, number), stack);
    layer.number = number;
    layer.block = block;
  }
}

Activation read_activation(const ConfigFile& config, const std::string& key, const std::string& fallback) {
  return parse_activation(config, key, config.text_or(key, fallback));
}

Activation parse_activation(const ConfigFile& config, const std::string& key, const std::string& name) {
  try {
    return activation_from(name);
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}: {}: {}", config.path().string(), key, error.what()));
  }
}

std::int64_t read_head_width(const ConfigFile& config, std::int64_t width, std::int64_t num_heads,
                             const std::string& heads_key) {
  if (width % num_heads != 0) config.refuse(heads_key, fmt::format("a divisor of the width, which is {}", width));
  return width / num_heads;
}

std::int64_t read_num_labels(const ConfigFile& config, const HeadRequest& request) {
  if (request.num_labels > 0) return request.num_labels;
  const auto named = config.num_members("id2label");
  const auto stated = config.integer_or("num_labels", 1, named > 0 ? named : 2);
  if (named > 0 && named != stated) {
    config.refuse("num_labels", fmt::format("{}, as many as id2label has members", named));
  }
  return stated;
}

void expect_text(const ConfigFile& config, const std::string& key, const std::string& only) {
  if (config.text_or(key, only) != only) {
    config.refuse(key, fmt::format("\"{}\", the only kind supported in this family", only));
  }
}

void expect_flag(const ConfigFile& config, const std::string& key, bool only, const std::string& why) {
  if (config.flag_or(key, only) != only) config.refuse(key, fmt::format("{}: {}", only, why));
}

void refuse_altered_weights(const ConfigFile& config) {
  for (const auto* key : {"quantization_config", "pruned_heads"}) {
    if (config.num_members(key) > 0)
      config.refuse(key, "none: such folders are not supported; save the plain model again");
  }
}

bool wants_language_model(const ConfigFile& config, const HeadRequest& request, bool is_usual) {
  if (request.kind != "auto") return request.kind == "language_model";
  const auto architectures = config.texts("architectures");
  const auto names_one = [&](std::initializer_list<const char*> ends) {
    return std::any_of(architectures.begin(), architectures.end(), [&](const std::string& name) {
      return std::any_of(ends.begin(), ends.end(), [&](const char* end) { return name.ends_with(end); });
    });
  };
  if (names_one({"ForSequenceClassification", "ForImageClassification"})) return false;
  return is_usual || names_one({"ForCausalLM", "ForConditionalGeneration", "LMHeadModel"});
}

HeadSpec& add_language_model_head(Backbone& backbone, Stack stack) {
  HeadSpec head;
  head.is_language_model = true;
  head.width = backbone.width;
  head.num_labels = backbone.vocab_size;
  return add_layer(backbone, LayerKind::kHead, "head", stack).head.emplace(head);
}

namespace {

HeadSpec pooled_head(const Backbone& backbone, const ConfigFile& config, const HeadRequest& request, Pooling usual) {
  HeadSpec head;
  head.pooling = request.pooling == "mean" ? Pooling::kMean : usual;
  head.width = backbone.width;
  head.num_labels = read_num_labels(config, request);
  head.has_dense = false;
  head.initializer_range = backbone.initializer_range;
  head.pad_token_id = config.integer_or("pad_token_id", 0, -1);
  return head;
}

}  // namespace

HeadSpec& add_sequence_head(Backbone& backbone, const ConfigFile& config, const HeadRequest& request) {
  auto head = pooled_head(backbone, config, request, Pooling::kEndOfSequence);
  if (head.pooling != Pooling::kMean) {
    head.has_dense = head.drops_pooled = true;
    head.dropout = config.probability_or("classifier_dropout", 0);
  }
  return add_layer(backbone, LayerKind::kHead, "head", Stack::kDecoder).head.emplace(head);
}

HeadSpec& add_causal_head(Backbone& backbone, const ConfigFile& config, const HeadRequest& request) {
  const bool is_language_model = wants_language_model(config, request, /*is_usual=*/true);
  auto& head = is_language_model ? add_language_model_head(backbone)
                                 : add_layer(backbone, LayerKind::kHead, "head")
                                       .head.emplace(pooled_head(backbone, config, request, Pooling::kLastToken));
  head.has_bias = false;
  return head;
}

}  // namespace espalier::model
