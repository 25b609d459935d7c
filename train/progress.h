// SPDX-License-Identifier: Apache-2.0
// Tells the user where the run stands: one line that renews itself on a terminal, a line now and then in a log file.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace espalier::train {

/// What a step adds.
struct StepProgress {
  std::int64_t step = 0;  ///< done
  std::int64_t num_steps = 0;
  std::int64_t epoch = 0;
  double loss = 0;
  std::int64_t rows = 0;
  std::int64_t tokens = 0;
  std::int64_t peak_bytes = 0;
};

/// Time counts from resume() to pause(): what comes before the first step, evaluation and saving are left out of the
/// rates.
class Progress {
 public:
  /// Prints only when `is_shown` (rank 0).
  explicit Progress(bool is_shown);
  void step(const StepProgress& progress);
  void pause();
  void resume();
  /// Ends the renewed line, so that other output starts on its own.
  void end_line();
  [[nodiscard]] double rows_per_second() const;
  [[nodiscard]] double tokens_per_second() const;
  [[nodiscard]] double seconds() const;
  [[nodiscard]] std::int64_t steps() const { return steps_; }

 private:
  using Clock = std::chrono::steady_clock;
  bool is_shown_;
  bool is_terminal_;
  bool has_open_line_ = false;
  Clock::time_point running_since_;
  Clock::time_point last_shown_;
  double seconds_before_ = 0;
  bool is_running_ = false;
  std::int64_t rows_ = 0, tokens_ = 0, steps_ = 0;
};

}  // namespace espalier::train
