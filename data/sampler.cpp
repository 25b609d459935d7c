// SPDX-License-Identifier: Apache-2.0
#include "data/sampler.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <numeric>
#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "common/random.h"

namespace espalier::data {

namespace {

// Global batches that are sorted by length together: enough that a batch holds rows of nearly one length (padding falls
// below the rounding to pad_multiple), few enough that batches stay a random sample.
constexpr std::int64_t kBatchesPerWindow = 50;

// Fisher-Yates over `count` items.
template <typename Swap>
void shuffle_items(std::int64_t count, PhiloxSequence& random, const Swap& swap_items) {
  for (std::int64_t last = count - 1; last > 0; --last) {
    swap_items(last, static_cast<std::int64_t>(random.next_below(static_cast<std::uint64_t>(last) + 1)));
  }
}

void check(const DataConfig& config, std::int64_t num_rows) {
  // The options' own bounds are the table's; here stand the two that the arithmetic below needs.
  ESPALIER_CHECK(config.global_batch_size > 0 && config.micro_batch_size >= 0, "batches of {} and {} rows",
                 config.global_batch_size, config.micro_batch_size);
  if (config.micro_batch_size > config.global_batch_size) {
    throw ConfigError(
        fmt::format("data.micro_batch_size: expected 0 (the global batch) to {} (data.global_batch_size), found {}",
                    config.global_batch_size, config.micro_batch_size));
  }
  if (config.fixed_length != 0 && config.fixed_length < config.max_length) {
    throw ConfigError(
        fmt::format("data.fixed_length: expected 0 or at least data.max_length ({}), found {}; lower data.max_length "
                    "to it if longer rows may be cut",
                    config.max_length, config.fixed_length));
  }
  if (config.group_by_length && !config.shuffle) {
    throw ConfigError(
        "data.group_by_length: expected together with data.shuffle = true, found data.shuffle = false; rows kept in "
        "the order of the file cannot be grouped");
  }
  if (num_rows < 1) {
    throw ConfigError(fmt::format("data.path: expected a split with at least one row, found {} rows", num_rows));
  }
}

}  // namespace

void describe(OptionTable& table, DataConfig& config) {
  table.add("data.path", config.path).help("Dataset file that tools/prepare.py wrote (docs/dataset_format.md).");
  table.add("data.label_column", config.label_column)
      .help("Further label column of the file (prepare.py --extra-label) that is learned. Empty: its labels.");
  table.add("data.global_batch_size", config.global_batch_size)
      .unit("rows")
      .at_least(1)
      .help("Rows of one optimizer step over all replicas. Part of the result: another value trains differently.");
  table.add("data.micro_batch_size", config.micro_batch_size)
      .unit("rows")
      .at_least(0)
      .help(
          "Rows that go through the pipeline together; 0: the global batch, for one replica of one stage. Every "
          "replica needs a micro-batch of its own in each step, and as many as it has stages to keep all of them busy. "
          "Smaller: less memory and shorter pipeline bubbles, more overhead. The layout (stages, replicas) never "
          "changes it.");
  table.add("data.max_length", config.max_length)
      .unit("tokens")
      .at_least(0)
      .help(
          "Rows are cut to their first so many tokens. 0: they stay as the file has them. tools/prepare.py "
          "--max-length "
          "cuts better: it keeps the special tokens at the end.");
  table.add("data.pad_multiple", config.pad_multiple)
      .unit("tokens")
      .at_least(1)
      .help(
          "A micro-batch is padded to its longest row, rounded up to a multiple of this. Larger: fewer shapes, more "
          "padding.");
  table.add("data.fixed_length", config.fixed_length)
      .unit("tokens")
      .at_least(0)
      .help(
          "Pads every micro-batch to this length instead (one shape, for measurements); 0 turns it off. At least "
          "data.max_length.");
  table.add("data.shuffle", config.shuffle)
      .help("Draws a new order of the training rows for every epoch; false keeps the file's.");
  table.add("data.group_by_length", config.group_by_length)
      .help(
          "Puts rows of similar length into one batch: less padding, hence faster; batches are a little less random.");
}

// The orders of two neighbouring epochs: a pipeline that looks ahead asks for both around the end of an epoch.
struct Sampler::Cache {
  struct Slot {
    std::int64_t epoch = -1;
    std::shared_ptr<const RowOrder> order;
  };
  std::mutex mutex;
  std::array<Slot, 2> slots;
};

Sampler::Sampler(std::int64_t num_rows, std::uint64_t seed, const DataConfig& config,
                 std::function<std::int64_t(std::int64_t)> length_of)
    : num_rows_(num_rows),
      seed_(seed),
      config_(config),
      length_of_(std::move(length_of)),
      cache_(std::make_shared<Cache>()) {
  check(config_, num_rows_);
  if (config_.micro_batch_size == 0) {
    config_.micro_batch_size = config_.global_batch_size;
  }
  ESPALIER_CHECK(!config_.group_by_length || length_of_, "grouping by length needs the lengths");
}

std::int64_t Sampler::steps_per_epoch() const {
  return (num_rows_ + config_.global_batch_size - 1) / config_.global_batch_size;
}

GlobalBatch Sampler::batch(std::int64_t step) const {
  ESPALIER_CHECK(step >= 0, "step {}", step);
  GlobalBatch result;
  result.epoch = step / steps_per_epoch();
  const auto rows = order(result.epoch);
  const std::int64_t begin = step % steps_per_epoch() * config_.global_batch_size;
  const std::int64_t end = std::min(begin + config_.global_batch_size, num_rows_);
  result.num_rows = end - begin;
  for (std::int64_t first = begin; first < end; first += config_.micro_batch_size) {
    const std::int64_t last = std::min(first + config_.micro_batch_size, end);
    result.micro_batches.emplace_back(rows->begin() + first, rows->begin() + last);
  }
  return result;
}

std::shared_ptr<const Sampler::RowOrder> Sampler::order(std::int64_t epoch) const {
  const std::lock_guard lock(cache_->mutex);
  Cache::Slot& slot = cache_->slots[static_cast<std::size_t>(epoch) % cache_->slots.size()];
  if (slot.epoch != epoch) {
    slot = {epoch, std::make_shared<const RowOrder>(make_order(epoch))};
  }
  return slot.order;
}

Sampler::RowOrder Sampler::make_order(std::int64_t epoch) const {
  RowOrder rows(static_cast<std::size_t>(num_rows_));
  std::iota(rows.begin(), rows.end(), std::int64_t{0});
  if (!config_.shuffle) {
    return rows;
  }
  PhiloxSequence random(derive_key({seed_, static_cast<std::uint64_t>(epoch), 0}, RandomDomain::kSampler, 0, 0));
  shuffle_items(num_rows_, random, [&](std::int64_t left, std::int64_t right) { std::swap(rows[left], rows[right]); });
  if (!config_.group_by_length) {
    return rows;
  }

  // The short batch at the end of the epoch takes no part: sorted, it would always hold the longest rows of its window.
  const std::int64_t batch_size = config_.global_batch_size;
  const std::int64_t num_full_batches = num_rows_ / batch_size;
  for (std::int64_t batch = 0; batch < num_full_batches; batch += kBatchesPerWindow) {
    const std::int64_t end = std::min(batch + kBatchesPerWindow, num_full_batches);
    std::stable_sort(rows.begin() + batch * batch_size, rows.begin() + end * batch_size,
                     [&](std::int64_t left, std::int64_t right) { return length_of_(left) < length_of_(right); });
  }
  shuffle_items(num_full_batches, random, [&](std::int64_t left, std::int64_t right) {
    if (left != right) {
      std::swap_ranges(rows.begin() + left * batch_size, rows.begin() + (left + 1) * batch_size,
                       rows.begin() + right * batch_size);
    }
  });
  return rows;
}

std::vector<std::vector<std::int64_t>> sequential_batches(std::int64_t num_rows, std::int64_t batch_size) {
  ESPALIER_CHECK(batch_size > 0, "batch size {}", batch_size);
  std::vector<std::vector<std::int64_t>> batches;
  for (std::int64_t begin = 0; begin < num_rows; begin += batch_size) {
    auto& batch = batches.emplace_back(static_cast<std::size_t>(std::min(batch_size, num_rows - begin)));
    std::iota(batch.begin(), batch.end(), begin);
  }
  return batches;
}

}  // namespace espalier::data
