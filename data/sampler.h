// SPDX-License-Identifier: Apache-2.0
// Which rows make up which global batch: a pure function of (seed, epoch, position). Nothing is ever skipped through or
// saved; a resumed run asks for the step it stopped at.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "common/options.h"

namespace espalier::data {

struct DataConfig {
  std::string path;
  std::string label_column;             ///< empty: the file's labels
  std::int64_t global_batch_size = 32;  ///< rows of an optimizer step
  std::int64_t micro_batch_size = 0;    ///< rows; 0: the global batch
  std::int64_t max_length = 0;          ///< tokens that a row is cut to; 0: rows stay whole
  std::int64_t pad_multiple = 8;        ///< tokens
  std::int64_t fixed_length = 0;        ///< tokens; 0: the longest row of the micro-batch, rounded up to pad_multiple
  bool shuffle = true;                  ///< a new order of rows every epoch
  bool group_by_length = false;         ///< rows of similar length share a batch
  /// The max_length of Split::collate().
  [[nodiscard]] std::int64_t row_limit() const {
    return max_length > 0 ? max_length : std::numeric_limits<std::int64_t>::max();
  }
};
/// Keys "data.*".
void describe(OptionTable& table, DataConfig& config);

/// Rows of one optimizer step, cut into the micro-batches that every layout shares.
struct GlobalBatch {
  std::int64_t epoch = 0;
  std::int64_t num_rows = 0;
  std::vector<std::vector<std::int64_t>> micro_batches;  ///< the last may be shorter; none is empty
};

/// Copies are cheap and give the same batches.
/// Thread: const methods are safe.
class Sampler {
 public:
  /// `length_of(row)` is asked only with group_by_length; it must be pure and safe to call from any thread.
  /// Requires: a config within the bounds of its options. Throws: ConfigError for sizes that contradict each other, or
  /// no rows.
  Sampler(std::int64_t num_rows, std::uint64_t seed, const DataConfig& config,
          std::function<std::int64_t(std::int64_t)> length_of);
  /// The last batch of an epoch may be smaller: every row is seen once an epoch.
  [[nodiscard]] std::int64_t steps_per_epoch() const;
  /// The batch of optimizer step `step`, counted from 0 over all epochs.
  [[nodiscard]] GlobalBatch batch(std::int64_t step) const;

 private:
  struct Cache;
  using RowOrder = std::vector<std::int64_t>;
  [[nodiscard]] RowOrder make_order(std::int64_t epoch) const;
  [[nodiscard]] std::shared_ptr<const RowOrder> order(std::int64_t epoch) const;

  std::int64_t num_rows_;
  std::uint64_t seed_;
  DataConfig config_;
  std::function<std::int64_t(std::int64_t)> length_of_;
  std::shared_ptr<Cache> cache_;
};

/// Rows 0..num_rows-1 in order, in batches of `batch_size`: for evaluation and prediction.
std::vector<std::vector<std::int64_t>> sequential_batches(std::int64_t num_rows, std::int64_t batch_size);

}  // namespace espalier::data
