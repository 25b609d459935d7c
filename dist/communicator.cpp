// SPDX-License-Identifier: Apache-2.0
// What all backends share: the life of a Work, the counting of bytes, and the checks whose errors name operation, shape
// and rank.
#include "dist/communicator.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <exception>

#include "common/error.h"
#include "common/log.h"

namespace espalier::dist {

namespace {

void drop(std::unique_ptr<PendingOperation>& pending) noexcept {
  if (pending == nullptr || std::uncaught_exceptions() > 0) {
    return;
  }
  try {
    pending->wait();
  } catch (const std::exception& error) {
    log_error("dist", "an operation that nobody waited for failed: {}", error.what());
  }
}

std::string shape_text(const at::Tensor& tensor) {
  if (!tensor.defined()) {
    return "an undefined tensor";
  }
  return fmt::format("{} [{}]", at::toString(tensor.scalar_type()), fmt::join(tensor.sizes(), ", "));
}

}  // namespace

Work& Work::operator=(Work&& other) noexcept {
  if (this != &other) {
    drop(pending_);
    pending_ = std::move(other.pending_);
  }
  return *this;
}

Work::~Work() {
  drop(pending_);
}

void Work::wait() {
  const auto pending = std::move(pending_);
  if (pending != nullptr) {
    pending->wait();
  }
}

bool Work::is_done() {
  return pending_ == nullptr || pending_->is_done();
}

void Communicator::count(const char* operation, const at::Tensor& tensor) const {
  if (ledger_ != nullptr && num_ranks() > 1) {
    ledger_->add_traffic(operation, traffic_label_, static_cast<std::int64_t>(tensor.nbytes()));
  }
}

std::string Communicator::describe_operation(const char* operation, const at::Tensor& tensor) const {
  return fmt::format("{} of {} on world rank {} (rank {} of {}, {})", operation, shape_text(tensor), world_rank(),
                     rank(), num_ranks(), backend());
}

void Communicator::require_tensor(const char* operation, const at::Tensor& tensor) const {
  if (!tensor.defined() || !tensor.is_contiguous()) {
    throw CommError(fmt::format("{}: expected a contiguous tensor, found {}", describe_operation(operation, tensor),
                                tensor.defined() ? "one that is not; call contiguous()" : "none"));
  }
}

void Communicator::require_outputs(const char* operation, const std::vector<at::Tensor>& outputs,
                                   const at::Tensor& input) const {
  if (static_cast<int>(outputs.size()) != num_ranks()) {
    throw CommError(fmt::format("{}: expected one output per rank, {} in all, found {}",
                                describe_operation(operation, input), num_ranks(), outputs.size()));
  }
  for (const at::Tensor& output : outputs) {
    require_tensor(operation, output);
    if (output.sizes() != input.sizes() || output.scalar_type() != input.scalar_type() ||
        output.device() != input.device()) {
      throw CommError(fmt::format("{}: expected outputs like the input, found {}", describe_operation(operation, input),
                                  shape_text(output)));
    }
  }
}

void Communicator::require_root(const char* operation, const at::Tensor& tensor, int root) const {
  if (root < 0 || root >= num_ranks()) {
    throw CommError(fmt::format("{}: expected a root from 0 to {}, found {}", describe_operation(operation, tensor),
                                num_ranks() - 1, root));
  }
}

void Communicator::require_color(int color) const {
  if (color < 0) {
    throw CommError(
        fmt::format("split on world rank {}: expected a color of at least 0, found {}", world_rank(), color));
  }
}

void Communicator::require_peer(const char* operation, const at::Tensor& tensor, int peer) const {
  if (peer < 0 || peer >= num_ranks() || peer == rank()) {
    throw CommError(fmt::format("{}: expected another rank of the {} of this group as the peer, found {}",
                                describe_operation(operation, tensor), num_ranks(), peer));
  }
}

}  // namespace espalier::dist
