// SPDX-License-Identifier: Apache-2.0
// One exception type per cause. A type says who can mend the failure, and thereby the exit code of the process.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>

namespace espalier {

/// Exit codes of every program of Espalier; scripts rely on them (docs/exit_codes.md). Never renumber.
enum class ExitCode : int {
  kOk = 0,
  kInternal = 1,  ///< a defect of Espalier
  kConfig = 2,    ///< the user's configuration or input
  kNumeric = 3,   ///< a loss or gradient that is not finite
  kComm = 4,      ///< communication or watchdog
  kStorage = 5,   ///< reading or writing files failed
  kStopped = 75,  ///< stopped on request, resumable: no failure, so no exception carries it
};

/// Base of all. The text says what was expected, what was found and what to do.
class Error : public std::runtime_error {
 public:
  Error(ExitCode exit_code, const std::string& message) : std::runtime_error(message), exit_code_(exit_code) {}
  [[nodiscard]] ExitCode exit_code() const noexcept { return exit_code_; }

 private:
  ExitCode exit_code_;
};

/// The user's configuration or input (options, data files, model folders, a layout that does not fit).
class ConfigError : public Error {
 public:
  explicit ConfigError(const std::string& message) : Error(ExitCode::kConfig, message) {}
};
/// A loss, gradient or statistic that is not finite or not representable.
class NumericError : public Error {
 public:
  explicit NumericError(const std::string& message) : Error(ExitCode::kNumeric, message) {}
};
/// A collective or a transfer failed, or a rank did not come.
class CommError : public Error {
 public:
  explicit CommError(const std::string& message) : Error(ExitCode::kComm, message) {}
};
/// The file system failed us: a full disk, a missing permission, a damaged checkpoint.
class IoError : public Error {
 public:
  explicit IoError(const std::string& message) : Error(ExitCode::kStorage, message) {}
};
/// A broken promise inside Espalier; report it.
class InternalError : public Error {
 public:
  explicit InternalError(const std::string& message) : Error(ExitCode::kInternal, message) {}
};

/// An error's own code, or kInternal for a foreign exception.
inline ExitCode exit_code_of(const std::exception& error) {
  const auto* own = dynamic_cast<const Error*>(&error);
  return own != nullptr ? own->exit_code() : ExitCode::kInternal;
}

}  // namespace espalier
