// SPDX-License-Identifier: Apache-2.0
#include "train/progress.h"

#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

#include "common/log.h"

namespace espalier::train {
namespace {

// A terminal line is renewed often enough to look alive; a log file stays readable.
constexpr double kTerminalSeconds = 0.2;
constexpr double kLogSeconds = 10.0;

std::string duration_text(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  return whole >= 3600 ? fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
                       : fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace

Progress::Progress(bool is_shown) : is_shown_(is_shown), is_terminal_(isatty(STDERR_FILENO) != 0) {}

void Progress::step(const StepProgress& progress) {
  rows_ += progress.rows;
  tokens_ += progress.tokens;
  ++steps_;
  const auto now = Clock::now();
  const bool is_last = progress.step == progress.num_steps;
  const double since_shown = std::chrono::duration<double>(now - last_shown_).count();
  if (!is_shown_ || (!is_last && steps_ > 1 && since_shown < (is_terminal_ ? kTerminalSeconds : kLogSeconds))) {
    return;
  }
  last_shown_ = now;
  const double left = seconds() / static_cast<double>(steps_) * static_cast<double>(progress.num_steps - progress.step);
  const auto text =
      fmt::format("step {}/{}  epoch {}  loss {:.4f}  {:.1f} samples/s  {:.0f} tokens/s  left {}  peak {:.0f} MiB",
                  progress.step, progress.num_steps, progress.epoch + 1, progress.loss, rows_per_second(),
                  tokens_per_second(), duration_text(left), static_cast<double>(progress.peak_bytes) / (1 << 20));
  if (is_terminal_) {
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
    std::fflush(stderr);
    has_open_line_ = true;
    if (is_last) {
      end_line();
    }
  } else {
    log_info("train", "{}", text);
  }
}

void Progress::pause() {
  seconds_before_ = seconds();
  is_running_ = false;
}

void Progress::resume() {
  running_since_ = Clock::now();
  is_running_ = true;
}

void Progress::end_line() {
  if (has_open_line_) {
    std::fputc('\n', stderr);
    has_open_line_ = false;
  }
}

double Progress::seconds() const {
  return seconds_before_ + (is_running_ ? std::chrono::duration<double>(Clock::now() - running_since_).count() : 0.0);
}
double Progress::rows_per_second() const {
  return seconds() > 0 ? static_cast<double>(rows_) / seconds() : 0;
}
double Progress::tokens_per_second() const {
  return seconds() > 0 ? static_cast<double>(tokens_) / seconds() : 0;
}

}  // namespace espalier::train
