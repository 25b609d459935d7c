// SPDX-License-Identifier: Apache-2.0
#include "memory_step.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <malloc.h>
#include <spdlog/fmt/fmt.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include <utility>

#include "common/counting_allocator.h"
#include "model/loss.h"

namespace espalier::benchmarks {

namespace {

constexpr int kMappedBytes = 1 << 20;  // without products, a larger block is fresh from the system: zeros, untouched

model::NamedTensors random_batch(const model::Backbone& backbone, const Shape& shape) {
  model::NamedTensors batch;
  if (backbone.chain.front().patch_embedding) {
    batch["pixel_values"] = at::randn({shape.rows, 3, 224, 224});
  } else {
    batch["input_ids"] = at::randint(2, backbone.vocab_size, {shape.rows, shape.tokens}, at::kLong);
    batch["attention_mask"] = at::ones({shape.rows, shape.tokens}, at::kLong);
  }
  if (!backbone.head().is_language_model) {
    batch["labels"] = at::zeros({shape.rows}, at::kLong);
  } else {
    batch["labels"] = shape.target_tokens == 0
                          ? batch["input_ids"].clone()
                          : at::randint(2, backbone.vocab_size, {shape.rows, shape.target_tokens}, at::kLong);
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

}  // namespace

std::shared_ptr<void> skip_products() {
  return std::make_shared<SkippedProducts>();
}

model::NamedTensors Trainee::batch_of(std::int64_t rows) const {
  Shape shape = shape_;
  shape.rows = rows;
  return random_batch(backbone_, shape);
}

Trainee::Trainee(const Row& row, const Shape& shape, bool has_products)
    : name_(row.name),
      shape_(shape),
      backbone_(plan(shape, row.keeps_scores)),
      source_(std::make_unique<RepeatedWeights>(backbone_, /*is_filled=*/has_products)) {
  const std::int64_t before = allocated_bytes().current;
  slice_ = std::make_unique<model::StageSlice>(backbone_, model::LayerRange{0, backbone_.num_layers()}, *source_,
                                               model::SliceOptions{});
  // ROSA's first event is left out: it changes values in place.
  method_ = peft::make_method(row.config, *slice_, *source_, /*seed=*/1);
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
  static_cast<void>(measure(1, nullptr));
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

}  // namespace espalier::benchmarks
