// SPDX-License-Identifier: Apache-2.0
// Nobody decides alone: what may differ between ranks is agreed on before anyone acts on it. All of these are
// collective over the control communicator and move host bytes only.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "common/error.h"
#include "dist/communicator.h"

namespace espalier::dist {

/// Part of every error that all ranks throw together (require_equal, require_all, together), so that one rank speaks
/// for all: abort_job.
class Agreed {
 public:
  virtual ~Agreed() = default;
};

/// True on every rank when it is true on any.
bool agree_any(Communicator& control, bool value);
/// Throws the same ConfigError on every rank when texts differ; it names `what` and the ranks whose digest differs from
/// rank 0's.
void require_equal(Communicator& control, std::string_view text, std::string_view what);
/// Throws on every rank when any rank failed: `error` is empty on success. The text names the first rank that failed
/// and its message; the type of the error follows `exit_code` of that rank (common/error.h), and with it the exit code.
void require_all(Communicator& control, const std::string& error, int exit_code, std::string_view what);
/// Runs `action` on every rank; when it throws on any, every rank throws as require_all() does. An Error keeps its
/// code, any other exception takes `foreign`. Collective: every rank; `action` itself may hold collectives only where
/// all ranks reach them or none.
void together(Communicator& control, std::string_view what, const std::function<void()>& action,
              ExitCode foreign = ExitCode::kInternal);
/// Rank `root`'s text on every rank.
std::string broadcast_text(Communicator& control, const std::string& text, int root = 0);

}  // namespace espalier::dist
