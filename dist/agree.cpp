// SPDX-License-Identifier: Apache-2.0
#include "dist/agree.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <cstring>
#include <exception>
#include <new>

#include "common/digest.h"

namespace espalier::dist {

namespace {

std::vector<at::Tensor> gather(Communicator& control, const at::Tensor& input) {
  std::vector<at::Tensor> outputs;
  outputs.reserve(static_cast<std::size_t>(control.num_ranks()));
  for (int rank = 0; rank < control.num_ranks(); ++rank) {
    outputs.push_back(at::empty_like(input));
  }
  control.all_gather(outputs, input).wait();
  return outputs;
}

[[noreturn]] void throw_by_code(ExitCode exit_code, const std::string& text) {
  switch (exit_code) {
    case ExitCode::kConfig:
      throw_agreed<ConfigError>(text);
    case ExitCode::kNumeric:
      throw_agreed<NumericError>(text);
    case ExitCode::kComm:
      throw_agreed<CommError>(text);
    case ExitCode::kStorage:
      throw_agreed<IoError>(text);
    case ExitCode::kOk:
    case ExitCode::kStopped:
    case ExitCode::kInternal:
      break;
  }
  throw_agreed<InternalError>(text);
}

}  // namespace

bool agree_any(Communicator& control, bool value) {
  const at::Tensor total = at::full({1}, value ? 1 : 0, at::kLong);
  control.all_reduce(total).wait();
  return total.item<std::int64_t>() > 0;
}

void require_equal(Communicator& control, std::string_view text, std::string_view what) {
  const std::string digest = digest_of(text);
  const at::Tensor mine = at::empty({static_cast<std::int64_t>(digest.size())}, at::kByte);
  std::memcpy(mine.data_ptr(), digest.data(), digest.size());
  const std::vector<at::Tensor> digests = gather(control, mine);
  std::vector<int> different;
  for (std::size_t rank = 1; rank < digests.size(); ++rank) {
    if (!at::equal(digests[rank], digests[0])) {
      different.push_back(static_cast<int>(rank));
    }
  }
  if (!different.empty()) {
    throw_agreed<ConfigError>(
        fmt::format("{}: expected the same on all {} ranks, found that it differs from rank 0's on rank{} {}; start "
                    "every rank with the same files, flags and build",
                    what, control.num_ranks(), different.size() == 1 ? "" : "s", fmt::join(different, ", ")));
  }
}

void require_all(Communicator& control, const std::string& error, ExitCode exit_code, std::string_view what) {
  // A message without a code is still a failure.
  const ExitCode code = error.empty() ? ExitCode::kOk : exit_code == ExitCode::kOk ? ExitCode::kInternal : exit_code;
  const std::vector<at::Tensor> codes = gather(control, at::full({1}, static_cast<int>(code), at::kInt));
  for (int rank = 0; rank < control.num_ranks(); ++rank) {
    const int found = codes[static_cast<std::size_t>(rank)].item<int>();
    if (found != 0) {
      const std::string text = broadcast_text(control, error, rank);
      throw_by_code(static_cast<ExitCode>(found), fmt::format("{} failed on rank {}: {}", what, rank, text));
    }
  }
}

void together(Communicator& control, std::string_view what, const std::function<void()>& action, ExitCode foreign) {
  std::string error;
  ExitCode exit_code = ExitCode::kOk;
  const auto fail = [&](const std::exception& failure, ExitCode code) {
    error = failure.what();
    // An empty text would be taken for success.
    error = error.empty() ? "an exception without text" : error;
    exit_code = code;
  };
  try {
    action();
  } catch (const Error& failure) {
    fail(failure, failure.exit_code());
  } catch (const std::bad_alloc& failure) {
    fail(failure, ExitCode::kInternal);
  } catch (const std::exception& failure) {
    fail(failure, foreign);
  }
  require_all(control, error, exit_code, what);
}

std::string broadcast_text(Communicator& control, const std::string& text, int root) {
  const at::Tensor size = at::full({1}, static_cast<std::int64_t>(text.size()), at::kLong);
  control.broadcast(size, root).wait();
  const at::Tensor bytes = at::empty({size.item<std::int64_t>()}, at::kByte);
  if (control.rank() == root && !text.empty()) {
    std::memcpy(bytes.data_ptr(), text.data(), text.size());
  }
  control.broadcast(bytes, root).wait();
  return {static_cast<const char*>(bytes.data_ptr()), static_cast<std::size_t>(bytes.numel())};
}

}  // namespace espalier::dist
