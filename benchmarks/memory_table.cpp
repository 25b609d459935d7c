// SPDX-License-Identifier: Apache-2.0
// What one training step of each method holds in memory, in exact allocated bytes, at the true shapes of published
// models with random weights: one forward, backward and update of one micro-batch on one stage, dropout as the models
// train with it, each row in a process of its own.
//   memory_table [MODEL ...] [limit=GB] [from=A,B] [method=NAME ...] [products=no] [check=yes] [kept=yes]
// Without models: all. A row that would need more than the limit is measured at smaller batches (a frozen part that
// alone is too large: at fewer layers too), from which the whole follows: bytes are affine in both. from=A,B measures
// every row at two small batches alone, which takes seconds. check=yes computes what is measured too. kept=yes lists
// the blocks that a forward leaves, by size.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Allocator.h>
#include <c10/util/accumulate.h>
#include <malloc.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
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
constexpr double kGiga = 1e9;
constexpr int kMappedBytes = 1 << 20;  // with products=no, a larger block is fresh from the system: zeros, untouched
const std::string kScoresKept = ", scores kept";

struct Shape {
  json config;
  std::int64_t rows = 0, tokens = 0, target_tokens = 0;
};

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

/// In the order in which they are measured.
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

struct Row {
  std::string name;
  peft::MethodConfig config;
  bool keeps_scores = false;  ///< attention by the slow twin, as frameworks compute it that keep their scores
};

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

/// Random numbers that repeat: drawing each anew takes longer than a step, and no byte depends on them.
class RepeatedWeights final : public model::WeightSource {
 public:
  /// `is_filled` false: large weights stay as the allocator gives them.
  RepeatedWeights(const model::Backbone& backbone, bool is_filled)
      : shapes_(model::random_backbone_weights(backbone, /*seed=*/1)),
        drawn_(at::randn({1 << 16}).mul_(0.02)),
        is_filled_(is_filled) {}

  [[nodiscard]] bool contains(const std::string& name) const override { return shapes_->contains(name); }
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const override { return shapes_->shape(name); }
  [[nodiscard]] std::vector<std::string> names() const override { return shapes_->names(); }
  [[nodiscard]] at::Tensor get(const std::string& name) const override {
    at::Tensor weight = at::empty(shape(name));
    if (!is_filled_ && weight.nbytes() > kMappedBytes) return weight;
    for (std::int64_t place = 0; place < weight.numel(); place += drawn_.numel()) {
      const std::int64_t length = std::min(drawn_.numel(), weight.numel() - place);
      weight.view(-1).narrow(0, place, length).copy_(drawn_.narrow(0, 0, length));
    }
    return weight;
  }

 private:
  std::unique_ptr<model::WeightSource> shapes_;
  at::Tensor drawn_;
  bool is_filled_;
};

/// Matrix products of CPU tensors become zeros of their shape while this lives.
class SkippedProducts {
 public:
  SkippedProducts() : library_(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__) {
    ::mallopt(M_MMAP_THRESHOLD, kMappedBytes);
    library_.impl("mm", [](const at::Tensor& a, const at::Tensor& b) {
      return at::zeros({a.size(0), b.size(1)}, a.options());
    });
    library_.impl("bmm", [](const at::Tensor& a, const at::Tensor& b) {
      return at::zeros({a.size(0), a.size(1), b.size(2)}, a.options());
    });
    library_.impl("addmm", [](const at::Tensor& /*bias*/, const at::Tensor& a, const at::Tensor& b,
                              const at::Scalar& /*beta*/, const at::Scalar& /*alpha*/) {
      return at::zeros({a.size(0), b.size(1)}, a.options());
    });
  }

 private:
  torch::Library library_;
};

/// Sizes of the live blocks of CPU tensors, beside what the counting allocator counts.
class BlockSizes final : public c10::Allocator {
 public:
  explicit BlockSizes(c10::Allocator& counting) : counting_(counting) {}

  c10::DataPtr allocate(std::size_t bytes) override {
    auto* block = new Block{counting_.allocate(bytes), bytes, this};
    const std::lock_guard lock(mutex_);
    ++live_[bytes];
    return {block->data.get(), block, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }  // data and context differ
  void copy_data(void* destination, const void* source, std::size_t bytes) const override {
    default_copy_data(destination, source, bytes);
  }
  std::map<std::size_t, std::int64_t> live() const {
    const std::lock_guard lock(mutex_);
    return live_;
  }

 private:
  struct Block {
    c10::DataPtr data;
    std::size_t bytes;
    BlockSizes* owner;
  };
  static void release(void* context) {
    const std::unique_ptr<Block> block(static_cast<Block*>(context));
    const std::lock_guard lock(block->owner->mutex_);
    --block->owner->live_[block->bytes];
  }

  c10::Allocator& counting_;
  mutable std::mutex mutex_;
  std::map<std::size_t, std::int64_t> live_;
};

/// One table row: what was measured at `rows` and `layers`, or computed for them.
struct Bytes {
  std::int64_t rows = 0, layers = 0;
  std::int64_t trained = 0;  ///< scalars
  /// As of the columns; activations are what the forward leaves for the backward.
  double weights = 0, gradients = 0, optimizer = 0, activations = 0, peak = 0;
  /// What stands there when the forward ends is less than the peak. A line through the peaks of small batches, which
  /// lie where the gradients do, can fall below it.
  [[nodiscard]] double least_peak() const { return weights + optimizer + activations; }
  [[nodiscard]] double known_peak() const { return std::max(peak, least_peak()); }
  [[nodiscard]] double above_held() const { return known_peak() - weights - optimizer; }
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Bytes, rows, layers, trained, weights, gradients, optimizer, activations, peak)

/// A model with its method and optimizer, as a training run holds them.
class Trainee {
 public:
  Trainee(const Row& row, const Shape& shape, bool has_products);
  /// One step. `sizes` may be null.
  Bytes measure(std::int64_t rows, const BlockSizes* sizes);

 private:
  [[nodiscard]] model::NamedTensors batch_of(std::int64_t rows) const {
    Shape shape = shape_;
    shape.rows = rows;
    return random_batch(backbone_, shape);
  }
  [[nodiscard]] peft::StageResult forward(const model::NamedTensors& batch) {
    return method_->forward({}, slice_->prepare(batch), {.is_training = true, .key = {.seed = 1}}, /*keeps_pass=*/true);
  }

  std::string name_;
  Shape shape_;
  model::Backbone backbone_;
  RepeatedWeights source_;
  std::unique_ptr<model::StageSlice> slice_;
  std::unique_ptr<peft::Method> method_;
  Bytes held_;
  std::vector<int> slot_;  ///< of trained(): its place among the optimizer's parameters, -1 without
  std::size_t num_parameters_ = 0;
  std::unique_ptr<optim::AdamW> optimizer_;
};

Trainee::Trainee(const Row& row, const Shape& shape, bool has_products)
    : name_(row.name),
      shape_(shape),
      backbone_(plan(shape, row.keeps_scores)),
      source_(backbone_, /*is_filled=*/has_products) {
  const std::int64_t before = allocated_bytes().current;
  slice_ = std::make_unique<model::StageSlice>(backbone_, model::LayerRange{0, backbone_.num_layers()}, source_,
                                               model::SliceOptions{});
  // ROSA's first event is left out: it changes values in place.
  method_ = peft::make_method(row.config, *slice_, source_, /*seed=*/1);
  held_.weights = static_cast<double>(allocated_bytes().current - before);
  const auto count = peft::count_trained(row.config, backbone_);
  held_.trained = count.method + count.head;
  held_.layers = num_layers(shape_.config);
  std::vector<optim::Parameter> parameters;
  std::map<std::string, int> first;
  for (const auto& tensor : method_->trained()) {
    slot_.push_back(-1);
    if (tensor.is_inert) continue;
    const auto [place, is_new] = first.emplace(tensor.name, static_cast<int>(parameters.size()));
    slot_.back() = place->second;
    if (is_new) {
      parameters.push_back({tensor.name, tensor.value, tensor.decays});
      held_.gradients += static_cast<double>(tensor.value.nbytes());
    }
  }
  num_parameters_ = parameters.size();
  optimizer_ = std::make_unique<optim::AdamW>(optim::OptimizerConfig{}, std::move(parameters));
  held_.optimizer = static_cast<double>(optimizer_->state_bytes());
  // The first step of a run keeps more: MEFT checks its inversion then.
  static_cast<void>(forward(batch_of(1)));
}

Bytes Trainee::measure(std::int64_t rows, const BlockSizes* sizes) {
  Bytes bytes = held_;
  bytes.rows = rows;
  std::vector<at::Tensor> gradients(num_parameters_);
  const auto batch = batch_of(rows);
  const std::int64_t before = allocated_bytes().current;
  const auto live_before = sizes != nullptr ? sizes->live() : std::map<std::size_t, std::int64_t>();
  reset_peak_allocated_bytes();
  auto result = forward(batch);
  bytes.activations = static_cast<double>(allocated_bytes().current - before);
  if (sizes != nullptr) {
    for (const auto& [size, live] : sizes->live()) {
      const auto found = live_before.find(size);
      const std::int64_t kept = live - (found == live_before.end() ? 0 : found->second);
      if (kept != 0) {
        fmt::print(stderr, "{}, batch {}: {:4} blocks of {:10.3f} MiB\n", name_, rows, kept,
                   static_cast<double>(size) / kMebi);
      }
    }
  }
  {
    const at::AutoGradMode with_gradient(true);
    const auto logits = result.outgoing.at("logits").detach().requires_grad_();
    result.outgoing.clear();
    auto gradient = torch::autograd::grad({loss_of(backbone_, logits, batch.at("labels"))}, {logits}).front();
    result.pass->backward({{"logits", std::move(gradient)}}, [&](int index, at::Tensor value) {
      const int place = slot_[static_cast<std::size_t>(index)];
      if (place < 0 || !value.defined()) return;
      auto& sum = gradients[static_cast<std::size_t>(place)];
      sum = sum.defined() ? sum + value : std::move(value);
    });
  }
  result.pass.reset();
  optimizer_->step(gradients, 1e-3);
  bytes.peak = static_cast<double>(allocated_bytes().peak);
  return bytes;
}

/// What stands in memory before any activation: weights, and for what trains gradient and moments.
double count_fixed_bytes(const Row& row, const Shape& shape) {
  const auto backbone = plan(shape, /*keeps_scores=*/false);
  std::int64_t numel = 0;
  model::visit_stored_tensors(backbone, [&](const auto& /*layer*/, const auto& /*stored*/, const auto& sizes) {
    numel += c10::multiply_integers(sizes);
  });
  return 4.0 * static_cast<double>(numel) +
         12.0 * static_cast<double>(peft::count_trained(row.config, backbone).method);
}

/// The line through two measurements, at `to`; `of` names what they are affine in.
Bytes extrapolate(const Bytes& a, const Bytes& b, std::int64_t Bytes::*of, std::int64_t to) {
  const double share = static_cast<double>(to - a.*of) / static_cast<double>(b.*of - a.*of);
  Bytes result = b;
  result.*of = to;
  const auto line = [&](auto from, auto until) { return from + share * (until - from); };
  for (double Bytes::*column :
       {&Bytes::weights, &Bytes::gradients, &Bytes::optimizer, &Bytes::activations, &Bytes::peak}) {
    result.*column = line(a.*column, b.*column);
  }
  result.trained = std::llround(line(static_cast<double>(a.trained), static_cast<double>(b.trained)));
  return result;
}

struct Result {
  Bytes whole;                    ///< at the table's batch
  std::vector<Bytes> measured;    ///< where it was measured; the whole itself, or what it follows from
  std::optional<Bytes> computed;  ///< asked for beside a whole that was measured
};

struct Request {
  double limit_bytes = 20 * kGiga;
  std::vector<std::int64_t> from;    ///< the two batches to compute from; empty: as the limit allows
  std::vector<std::string> methods;  ///< empty: all
  bool is_checked = false;
  std::string flags = "none";  ///< of a measurement: words of "kept", "skip"
};

class Table {
 public:
  Table(std::string program, std::string model, Shape shape, Request request)
      : program_(std::move(program)),
        model_(std::move(model)),
        shape_(std::move(shape)),
        request_(std::move(request)) {}

  void print();

 private:
  /// Steps of these batches, in a process of their own. Throws: std::runtime_error when it does not end well.
  std::vector<Bytes> run(const Row& row, const std::vector<std::int64_t>& batches, std::int64_t layers) const;
  Result find(const Row& row) const;
  void print_row(const std::string& name, const Bytes& bytes, const std::string& how) const;

  std::string program_, model_;
  Shape shape_;
  Request request_;
  std::map<std::string, Bytes> wholes_;
};

std::vector<Bytes> Table::run(const Row& row, const std::vector<std::int64_t>& batches, std::int64_t layers) const {
  const auto command = fmt::format("'{}' measure {} {} {} {} '{}'", program_, model_, fmt::join(batches, ","), layers,
                                   request_.flags, row.name);
  std::FILE* pipe = ::popen(command.c_str(), "r");
  std::string output;
  std::array<char, 4096> buffer{};
  while (pipe != nullptr && std::fgets(buffer.data(), buffer.size(), pipe) != nullptr) output += buffer.data();
  if (pipe == nullptr || ::pclose(pipe) != 0) throw std::runtime_error(command);
  return json::parse(output).get<std::vector<Bytes>>();
}

Result Table::find(const Row& row) const {
  Shape shape = shape_;
  std::int64_t& layers = num_layers(shape.config);
  const std::int64_t all_layers = layers;
  while (layers > 4 && count_fixed_bytes(row, shape) > 0.7 * request_.limit_bytes) layers /= 2;
  std::vector<std::int64_t> batches = request_.from;
  if (batches.empty()) {
    const auto probes = run(row, {1, 3}, layers);
    // Where a method recomputes, the peak grows with the batch and the activations do not.
    const double slope = std::max(probes[1].activations - probes[0].activations, probes[1].peak - probes[0].peak) / 2;
    std::int64_t rows = shape_.rows;
    while (rows > 2 && probes[0].peak + 1.1 * slope * static_cast<double>(rows) > request_.limit_bytes) {
      rows = (rows + 1) / 2;
    }
    if (rows < shape_.rows || layers < all_layers) {
      batches = {rows / 2, rows};
    } else if (request_.is_checked) {
      batches = {rows / 4, rows / 2, rows};
    } else {
      batches = {rows};
    }
  }

  Result result;
  const auto at_depth = [&](std::int64_t depth) {
    const auto found = run(row, batches, depth);
    result.measured.insert(result.measured.end(), found.begin(), found.end());
    return found.size() == 1 ? found[0] : extrapolate(found[0], found[1], &Bytes::rows, shape_.rows);
  };
  result.whole = at_depth(layers);
  if (layers < all_layers) {
    const Bytes shallow = at_depth(layers / 2);
    result.whole = extrapolate(shallow, result.whole, &Bytes::layers, all_layers);
  }
  if (batches.size() == 3) {
    result.computed = std::exchange(result.whole, result.measured.back());
    result.measured = {result.whole};
  }
  return result;
}

void Table::print() {
  const auto backbone = plan(shape_, /*keeps_scores=*/false);
  const auto block = std::find_if(backbone.chain.begin(), backbone.chain.end(), [](const auto& l) { return l.block; });
  fmt::print(
      "## {}, batch {} x {} tokens, dropout {:g}, in attention {:g}\n\nMiB; the last four columns are ratios to the "
      "row "
      "of full fine-tuning, and of LoRA, whose attention is the same.\n\n",
      model_, shape_.rows, shape_.tokens, block->block->hidden_dropout, block->block->attention_dropout);
  fmt::print(
      "| method | batch | trained | weights | gradients | optimizer | activations | peak | peak - weights - optimizer "
      "| "
      "peak / full | activations / full | peak - w. - o. / full | peak / LoRA |\n"
      "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  std::fflush(stdout);
  for (const Row& row : rows_of(model_)) {
    const auto& wanted = request_.methods;
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), row.name) == wanted.end()) continue;
    try {
      const Result result = find(row);
      wholes_.emplace(row.name, result.whole);
      const bool is_measured = result.measured.size() == 1;
      for (const Bytes& point : result.measured) {
        if (is_measured || !request_.from.empty()) break;
        print_row(row.name, point,
                  point.layers == result.whole.layers ? fmt::format("{}", point.rows)
                                                      : fmt::format("{}, {} layers", point.rows, point.layers));
      }
      print_row(row.name, result.whole, fmt::format("{}{}", shape_.rows, is_measured ? "" : ", computed"));
      if (result.computed) {
        print_row(row.name, *result.computed,
                  fmt::format("{}, computed from {} and {}", shape_.rows, shape_.rows / 4, shape_.rows / 2));
      }
    } catch (const std::runtime_error& error) {
      fmt::print("| {} | {} | failed | | | | | | | | | | |\n", row.name, shape_.rows);
      fmt::print(stderr, "{}: {}\n", row.name, error.what());
      std::fflush(stdout);
    }
  }
  fmt::print("\n");
}

void Table::print_row(const std::string& name, const Bytes& bytes, const std::string& how) const {
  const auto mebi = [](double value) { return fmt::format("{:.1f}", value / kMebi); };
  const auto ratio = [&](const char* other, auto column) {
    const auto found = wholes_.find(other + (name.ends_with(kScoresKept) ? kScoresKept : ""));
    const bool is_whole = bytes.rows == shape_.rows && found != wholes_.end() && bytes.layers == found->second.layers;
    return is_whole ? fmt::format("{:.3f}", column(bytes) / column(found->second)) : std::string();
  };
  const auto peak = [](const Bytes& of) { return of.known_peak(); };
  const char* bound = bytes.peak < bytes.least_peak() ? ">= " : "";
  fmt::print("| {} | {} | {} | {} | {} | {} | {} | {}{} | {}{} | {} | {} | {} | {} |\n", name, how, bytes.trained,
             mebi(bytes.weights), mebi(bytes.gradients), mebi(bytes.optimizer), mebi(bytes.activations), bound,
             mebi(bytes.known_peak()), bound, mebi(bytes.above_held()), ratio("full", peak),
             ratio("full", [](const Bytes& of) { return of.activations; }),
             ratio("full", [](const Bytes& of) { return of.above_held(); }), ratio("lora", peak));
  std::fflush(stdout);
}

std::vector<std::int64_t> numbers_of(const std::string& text) {
  return json::parse("[" + text + "]").get<std::vector<std::int64_t>>();
}

/// `arguments`: MODEL batches layers flags ROW, as Table::run gives them.
int measure_alone(const std::vector<std::string>& arguments, const std::map<std::string, Shape>& all) {
  const std::string& model = arguments.at(0);
  Shape shape = all.at(model);
  num_layers(shape.config) = std::stoll(arguments.at(2));
  BlockSizes* sizes = nullptr;
  const std::string& flags = arguments.at(3);
  const auto skipped = flags.find("skip") != std::string::npos ? std::make_unique<SkippedProducts>() : nullptr;
  if (flags.find("kept") != std::string::npos) {
    sizes = new BlockSizes(*c10::GetAllocator(c10::DeviceType::CPU));  // never destroyed: tensors may outlive it
    c10::SetAllocator(c10::DeviceType::CPU, sizes, /*priority=*/2);
  }
  for (const Row& row : rows_of(model)) {
    if (row.name != arguments.at(4)) continue;
    Trainee trainee(row, shape, /*has_products=*/skipped == nullptr);
    std::vector<Bytes> found;
    for (const std::int64_t rows : numbers_of(arguments.at(1))) found.push_back(trainee.measure(rows, sizes));
    fmt::print("{}\n", json(found).dump());
    return 0;
  }
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  install_counting_allocator();
  const auto ordered = shapes();
  const std::map<std::string, Shape> all(ordered.begin(), ordered.end());
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (!words.empty() && words.front() == "measure") return measure_alone({words.begin() + 1, words.end()}, all);

  std::vector<std::string> models;
  Request request;
  for (const std::string& word : words) {
    const std::size_t place = word.find('=');
    const std::string key = word.substr(0, place);
    const std::string value = place == std::string::npos ? "" : word.substr(place + 1);
    if (all.contains(word)) {
      models.push_back(word);
    } else if (key == "limit") {
      request.limit_bytes = std::stod(value) * kGiga;
    } else if (key == "from" && numbers_of(value).size() == 2) {
      request.from = numbers_of(value);
    } else if (key == "method") {
      request.methods.push_back(value);
    } else if (word == "check=yes") {
      request.is_checked = true;
    } else if (word == "kept=yes") {
      request.flags += ",kept";
    } else if (word == "products=no") {
      request.flags += ",skip";
    } else {
      fmt::print(stderr,
                 "memory_table: expected [MODEL ...] [limit=GB] [from=A,B] [method=NAME ...] [products=no] [check=yes] "
                 "[kept=yes], found '{}'; models:",
                 word);
      for (const auto& [name, shape] : ordered) fmt::print(stderr, " {}", name);
      fmt::print(stderr, "\n");
      return 2;
    }
  }
  for (const auto& [name, shape] : ordered) {
    if (!models.empty() && std::find(models.begin(), models.end(), name) == models.end()) continue;
    Table(argv[0], name, shape, request).print();
  }
  return 0;
}
