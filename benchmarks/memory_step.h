// SPDX-License-Identifier: Apache-2.0
// What one training step of one method holds, in exact allocated bytes.
#pragma once

#include <c10/core/Allocator.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "memory_shapes.h"
#include "optim/adamw.h"
#include "peft/method.h"

namespace espalier::benchmarks {

inline constexpr double kMebi = 1 << 20;

/// Matrix products of CPU tensors become zeros of their shape while it lives.
std::shared_ptr<void> skip_products();

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
  [[nodiscard]] model::NamedTensors batch_of(std::int64_t rows) const;
  [[nodiscard]] peft::StageResult forward(const model::NamedTensors& batch) {
    return method_->forward({}, slice_->prepare(batch), {.is_training = true, .key = {.seed = 1}}, /*keeps_pass=*/true);
  }

  std::string name_;
  Shape shape_;
  model::Backbone backbone_;
  std::unique_ptr<model::WeightSource> source_;
  std::unique_ptr<model::StageSlice> slice_;
  std::unique_ptr<peft::Method> method_;
  Bytes held_;
  std::vector<int> slot_;  ///< of trained(): its place among the optimizer's parameters, -1 without
  std::size_t num_parameters_ = 0;
  std::unique_ptr<optim::AdamW> optimizer_;
};

}  // namespace espalier::benchmarks
