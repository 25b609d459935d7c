// SPDX-License-Identifier: Apache-2.0
// Nobody decides alone: what may differ between ranks is agreed on before anyone acts on it. All of these are
// collective over the control communicator, move host bytes only, and throw CommError as its operations do.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "common/error.h"
#include "dist/communicator.h"

namespace espalier::dist {

/// Part of every error that all ranks throw together, so that one rank speaks for all: abort_job.
class Agreed {
 public:
  virtual ~Agreed() = default;
};

/// An error of a known type that is one of these.
template <typename AnError>
class AgreedError final : public AnError, public Agreed {
 public:
  using AnError::AnError;
};

/// Throws an `AnError` that is marked as agreed. Collective: no; but every rank throws it here, by what all ranks know.
template <typename AnError>
[[noreturn]] void throw_agreed(const std::string& text) {
  throw AgreedError<AnError>(text);
}

/// True on every rank when it is true on any.
bool agree_any(Communicator& control, bool value);
/// Throws: ConfigError, the same on every rank, when texts differ; it names `what` and the ranks whose digest differs
/// from rank 0's.
void require_equal(Communicator& control, std::string_view text, std::string_view what);
/// `error`: how this rank failed, empty on success.
/// Throws: the same error on every rank when any failed. Its text names the first rank that failed and its message; its
/// type follows `exit_code` of that rank (common/error.h), and with it the exit code.
void require_all(Communicator& control, const std::string& error, ExitCode exit_code, std::string_view what);
/// Runs `action` on every rank; when it throws on any, every rank throws as require_all() does. An Error keeps its
/// code, a lack of memory is kInternal, any other exception takes `foreign`. Collective: every rank; `action` itself
/// may hold collectives only where all ranks reach them or none.
void together(Communicator& control, std::string_view what, const std::function<void()>& action,
              ExitCode foreign = ExitCode::kInternal);
/// Rank `root`'s text on every rank.
std::string broadcast_text(Communicator& control, const std::string& text, int root = 0);

}  // namespace espalier::dist
