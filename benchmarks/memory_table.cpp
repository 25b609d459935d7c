// SPDX-License-Identifier: Apache-2.0
// What one training step of each method holds in memory, in exact allocated bytes, at the true shapes of published
// models with random weights: one forward, backward and update of one micro-batch on one stage, each row in a process
// of its own.
//   memory_table MODEL [rows=N] [METHOD ...]     without methods: all of them
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/autograd/autograd.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/counting_allocator.h"
#include "common/durable_file.h"
#include "model/loss.h"
#include "optim/adamw.h"
#include "peft/method.h"

namespace {

namespace fs = std::filesystem;
using namespace espalier;  // NOLINT(google-build-using-namespace): one file, one program
using nlohmann::json;

constexpr double kMebi = 1 << 20;

struct Shape {
  json config;
  std::int64_t rows = 0, tokens = 0, target_tokens = 0;
};

json bert(const char* type, std::int64_t width, std::int64_t heads, std::int64_t layers, std::int64_t vocabulary) {
  return {{"model_type", type},
          {"hidden_size", width},
          {"num_attention_heads", heads},
          {"intermediate_size", 4 * width},
          {"num_hidden_layers", layers},
          {"vocab_size", vocabulary},
          {"max_position_embeddings", 514},
          {"type_vocab_size", type == std::string("bert") ? 2 : 1},
          {"pad_token_id", 1}};
}

std::map<std::string, Shape> shapes() {
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
          {"roberta-large", {bert("roberta", 1024, 16, 24, 50265), 16, 128}},
          {"opt-1.3b", {opt, 4, 128}},
          {"vit-base", {vit, 32}}};
}

struct Row {
  std::string name;
  peft::MethodConfig config;
  bool keeps_scores = false;  ///< attention by the slow twin, as frameworks compute it that keep their scores
};

std::vector<Row> rows_of(const std::string& model) {
  const bool is_decoder = model.starts_with("opt");
  const bool has_biases = !model.starts_with("t5");
  peft::MethodConfig lst{.method = "lst"}, dropped = lst;
  if (model == "t5-base") {
    dropped.lst.layers = dropped.lst.decoder_layers = {1, 2, 3, 5, 6, 7, 9, 10, 11};
  }
  const auto meft = [&](std::int64_t variant) {
    peft::MethodConfig config{.method = "meft"};
    config.meft.variant = variant;
    config.meft.rank = is_decoder ? 64 : 8;
    return config;
  };
  std::vector<Row> rows = {{"full", {.method = "full"}},
                           {"full, scores kept", {.method = "full"}, true},
                           {"lora", {.method = "lora"}},
                           {"lora, scores kept", {.method = "lora"}, true},
                           {"adapter", {.method = "adapter"}},
                           {"rosa", {.method = "rosa"}},
                           {"lst", lst},
                           {"lst, scores kept", lst, true},
                           {"meft1", meft(1)},
                           {"meft2", meft(2)}};
  if (has_biases) {
    rows.push_back({"bitfit", {.method = "bitfit"}});
    rows.push_back({"last", {.method = "last"}});
    rows.push_back({"meft3", meft(3)});
  } else {
    rows.push_back({"lst, 3 + 3 dropped", dropped});
    rows.push_back({"lst, 3 + 3 dropped, scores kept", dropped, true});
  }
  return rows;
}

model::Backbone plan(const Shape& shape, bool keeps_scores) {
  const auto folder = fs::temp_directory_path() / fmt::format("espalier_memory_{}", ::getpid());
  fs::create_directories(folder);
  write_file_durably(folder / "config.json", shape.config.dump());
  auto backbone = model::read_backbone(folder, {});
  fs::remove_all(folder);
  for (auto& layer : backbone.chain) {
    if (layer.block) layer.block->keeps_scores = keeps_scores;
  }
  return backbone;
}

model::NamedTensors random_batch(const model::Backbone& backbone, const Shape& shape) {
  model::NamedTensors batch;
  if (backbone.chain.front().patch_embedding) {
    batch["pixel_values"] = at::randn({shape.rows, 3, 224, 224});
  } else {
    batch["input_ids"] = at::randint(2, 30000, {shape.rows, shape.tokens}, at::kLong);
    batch["attention_mask"] = at::ones({shape.rows, shape.tokens}, at::kLong);
  }
  if (!backbone.head().is_language_model) {
    batch["labels"] = at::zeros({shape.rows}, at::kLong);
  } else {
    batch["labels"] = shape.target_tokens == 0 ? batch["input_ids"].clone()
                                               : at::randint(2, 30000, {shape.rows, shape.target_tokens}, at::kLong);
  }
  model::complete_decoder_inputs(backbone, batch);
  return batch;
}

at::Tensor loss_of(const model::Backbone& backbone, const at::Tensor& logits, const at::Tensor& labels) {
  if (!backbone.head().is_language_model) {
    return model::classification_loss(logits, labels, labels.size(0));
  }
  const bool is_shifted = !backbone.is_encoder_decoder();
  return model::token_loss(logits, labels, is_shifted, model::count_targets(labels, is_shifted));
}

void measure(const Row& row, const Shape& shape) {
  const auto backbone = plan(shape, row.keeps_scores);
  const auto weights = model::random_backbone_weights(backbone, /*seed=*/1);
  model::StageSlice slice(backbone, {0, backbone.num_layers()}, *weights, {});
  const auto method = peft::make_method(row.config, slice, *weights, /*seed=*/1);
  if (auto* resampling = method->resampling(); resampling != nullptr) {
    for (int weight = 0; weight < resampling->num_weights(); ++weight) {
      resampling->resample(weight, /*event=*/0);
    }
  }
  const std::int64_t weight_bytes = allocated_bytes().current;
  std::vector<optim::Parameter> parameters;
  std::vector<at::Tensor> gradients;
  std::vector<int> slot(method->trained().size(), -1);
  std::int64_t gradient_bytes = 0;
  std::map<std::string, int> first;
  for (std::size_t i = 0; i < method->trained().size(); ++i) {
    const auto& tensor = method->trained()[i];
    if (tensor.is_inert) continue;
    const auto [place, is_new] = first.emplace(tensor.name, static_cast<int>(parameters.size()));
    slot[i] = place->second;
    if (is_new) {
      parameters.push_back({tensor.name, tensor.value, tensor.decays});
      gradient_bytes += static_cast<std::int64_t>(tensor.value.nbytes());
    }
  }
  gradients.resize(parameters.size());
  optim::AdamW optimizer({}, std::move(parameters));
  const auto batch = random_batch(backbone, shape);

  const std::int64_t before = allocated_bytes().current;
  reset_peak_allocated_bytes();
  const model::ForwardContext context{.is_training = true, .key = {.seed = 1}};
  auto result = method->forward({}, slice.prepare(batch), context, /*keeps_pass=*/true);
  const std::int64_t activation_bytes = allocated_bytes().current - before;
  {
    const at::AutoGradMode with_gradient(true);
    const auto logits = result.outgoing.at("logits").detach().requires_grad_();
    result.outgoing.clear();
    auto gradient = torch::autograd::grad({loss_of(backbone, logits, batch.at("labels"))}, {logits}).front();
    result.pass->backward({{"logits", std::move(gradient)}}, [&](int index, at::Tensor value) {
      const int place = slot[static_cast<std::size_t>(index)];
      if (place < 0 || !value.defined()) return;
      auto& sum = gradients[static_cast<std::size_t>(place)];
      sum = sum.defined() ? sum + value : std::move(value);
    });
  }
  result.pass.reset();
  optimizer.step(gradients, 1e-3);
  fmt::print("| {} | {} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.1f} |\n", row.name, shape.rows,
             static_cast<double>(weight_bytes) / kMebi, static_cast<double>(gradient_bytes) / kMebi,
             static_cast<double>(optimizer.state_bytes()) / kMebi, static_cast<double>(activation_bytes) / kMebi,
             static_cast<double>(allocated_bytes().peak) / kMebi);
}

}  // namespace

int main(int argc, char** argv) {
  install_counting_allocator();
  const auto all = shapes();
  if (argc < 2 || !all.contains(argv[1])) {
    fmt::print(stderr, "usage: memory_table MODEL [rows=N] [METHOD ...], MODEL of:");
    for (const auto& [name, shape] : all) fmt::print(stderr, " {}", name);
    fmt::print(stderr, "\n");
    return 2;
  }
  Shape shape = all.at(argv[1]);
  std::vector<std::string> wanted;
  for (int i = 2; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.starts_with("rows=")) {
      shape.rows = std::atoll(word.c_str() + 5);
    } else {
      wanted.push_back(word);
    }
  }
  const bool is_child = wanted.size() == 1;
  if (!is_child) {
    fmt::print("{}, {} tokens a row, MiB\n\n", argv[1], shape.tokens);
    fmt::print(
        "| method | batch | weights | gradients | optimizer | activations | peak |\n|---|---|---|---|---|---|---|\n");
    std::fflush(stdout);
  }
  for (const auto& row : rows_of(argv[1])) {
    if (is_child && row.name == wanted.front()) {
      measure(row, shape);
    } else if (!is_child && (wanted.empty() || std::find(wanted.begin(), wanted.end(), row.name) != wanted.end())) {
      // A row that does not fit ends its own process alone.
      const auto command = fmt::format("'{}' {} rows={} '{}'", argv[0], argv[1], shape.rows, row.name);
      if (std::system(command.c_str()) != 0) {
        fmt::print("| {} | {} | does not fit | | | | |\n", row.name, shape.rows);
        std::fflush(stdout);
      }
    }
  }
  return 0;
}
