// SPDX-License-Identifier: Apache-2.0
#include "memory_shapes.h"

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <filesystem>

#include "common/durable_file.h"

namespace espalier::benchmarks {

namespace {

using nlohmann::json;

json bert(const char* type, std::int64_t width, std::int64_t heads, std::int64_t layers, std::int64_t vocabulary) {
  const bool is_bert = type == std::string("bert");
  return {{"model_type", type},
          {"hidden_size", width},
          {"num_attention_heads", heads},
          {"intermediate_size", 4 * width},
          {"num_hidden_layers", layers},
          {"vocab_size", vocabulary},
          {"max_position_embeddings", is_bert ? 512 : 514},
          {"type_vocab_size", is_bert ? 2 : 1},
          {"pad_token_id", is_bert ? 0 : 1}};
}

}  // namespace

std::vector<std::pair<std::string, Shape>> shapes() {
  const json t5_base = {{"model_type", "t5"}, {"d_model", 768},   {"num_heads", 12},    {"d_kv", 64},
                        {"d_ff", 3072},       {"num_layers", 12}, {"vocab_size", 32128}};
  const json opt = {{"model_type", "opt"},         {"hidden_size", 2048},
                    {"num_attention_heads", 32},   {"ffn_dim", 8192},
                    {"num_hidden_layers", 24},     {"vocab_size", 50272},
                    {"word_embed_proj_dim", 2048}, {"max_position_embeddings", 2048}};
  const json vit = {{"model_type", "vit"},       {"hidden_size", 768},      {"intermediate_size", 3072},
                    {"num_attention_heads", 12}, {"num_hidden_layers", 12}, {"image_size", 224},
                    {"patch_size", 16}};
  return {{"t5-base", {t5_base, 100, 128, 4}},
          {"bert-base", {bert("bert", 768, 12, 12, 30522), 32, 512}},
          {"bert-base-6", {bert("bert", 768, 12, 6, 30522), 32, 512}},
          {"bert-base-24", {bert("bert", 768, 12, 24, 30522), 32, 512}},
          {"vit-base", {vit, 32, 197}},
          {"roberta-large", {bert("roberta", 1024, 16, 24, 50265), 16, 128}},
          {"opt-1.3b", {opt, 4, 128}}};
}

std::int64_t& num_layers(json& config) {
  return config.at(config.contains("num_layers") ? "num_layers" : "num_hidden_layers").get_ref<std::int64_t&>();
}

std::vector<Row> rows_of(const std::string& model) {
  const bool is_decoder = model.starts_with("opt");
  const bool is_t5 = model.starts_with("t5");
  std::vector<Row> rows;
  const auto add = [&](const std::string& name, const peft::MethodConfig& config, bool has_twin = false) {
    rows.push_back({name, config});
    if (has_twin) rows.push_back({name + kScoresKept, config, /*keeps_scores=*/true});
  };
  const auto add_meft = [&](std::int64_t variant) {
    peft::MethodConfig config{.method = "meft"};
    config.meft.variant = variant;
    config.meft.rank = is_decoder ? 64 : 8;
    add(fmt::format("meft{}", variant), config);
  };
  add("full", {.method = "full"}, /*has_twin=*/true);
  if (model.starts_with("bert-base-")) {  // the depth alone is asked for
    for (const std::int64_t variant : {1, 2, 3}) add_meft(variant);
    return rows;
  }
  add("lora", {.method = "lora"}, /*has_twin=*/true);
  add("adapter", {.method = "adapter"});
  if (!is_t5) add("bitfit", {.method = "bitfit"});  // T5 has no biases
  add("rosa", {.method = "rosa"});
  peft::MethodConfig lst{.method = "lst"};
  lst.lst.side_initial = "random";  // pruning takes time and no bytes of a step
  add("lst", lst, /*has_twin=*/true);
  if (is_t5) {
    lst.lst.layers = lst.lst.decoder_layers = {1, 2, 3, 5, 6, 7, 9, 10, 11};
    add("lst, 3 + 3 dropped", lst, /*has_twin=*/true);
  } else {
    add("last", {.method = "last"});  // one stack only
  }
  add_meft(1);
  add_meft(2);
  if (!is_t5) add_meft(3);  // a decoder block with cross-attention has three parts
  return rows;
}

model::Backbone plan(const Shape& shape, bool keeps_scores) {
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("espalier_memory_{}", ::getpid());
  std::filesystem::create_directories(folder);
  write_file_durably(folder / "config.json", shape.config.dump());
  auto backbone = model::read_backbone(folder, {});
  std::filesystem::remove_all(folder);
  for (auto& layer : backbone.chain) {
    if (layer.block) layer.block->keeps_scores = keeps_scores;
  }
  return backbone;
}

}  // namespace espalier::benchmarks
