// SPDX-License-Identifier: Apache-2.0
// A group of ranks that exchange tensors. Backends: Solo (one rank), Thread (threads as ranks, for tests), MPI (host
// tensors; CUDA tensors staged through pinned memory), NCCL (CUDA tensors). One conformance suite runs against all of
// them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/byte_ledger.h"

namespace espalier::dist {

/// What a backend keeps of an operation that has been started.
class PendingOperation {
 public:
  virtual ~PendingOperation() = default;
  /// See Work::wait.
  virtual void wait() = 0;
  [[nodiscard]] virtual bool is_done() = 0;
};

/// A started operation. Move-only; a Work that is dropped without being waited for is waited for by its destructor,
/// unless the stack unwinds: then its buffers are kept for ever, since the backend may still write into them.
class Work {
 public:
  Work() = default;  ///< already done
  explicit Work(std::unique_ptr<PendingOperation> pending) : pending_(std::move(pending)) {}
  Work(Work&&) noexcept = default;
  Work& operator=(Work&& other) noexcept;
  Work(const Work&) = delete;
  ~Work();
  /// Stream: orders the caller's current CUDA stream after the operation; blocks the host for host tensors only.
  /// Throws: CommError naming operation, shape and world rank.
  void wait();
  /// Host side: true once wait() would not block.
  [[nodiscard]] bool is_done();

 private:
  std::unique_ptr<PendingOperation> pending_;
};

/// In-order lanes of point-to-point messages between two ranks: messages of one channel keep their order, channels are
/// independent.
enum class Channel : int {
  kForward = 0,
  kBackward = 1,
  kTied = 2,  ///< gradients of a weight that several stages hold
  kControl = 3,
};

/// Every tensor is contiguous, stays alive inside the Work, and belongs to the operation until it was waited for:
/// nobody reads what it will write, nobody writes what it still reads. Collectives are called by every rank of the
/// group, in the same order, with equal shape and dtype. Owns: a Work does not outlive its communicator. Thread: the
/// thread that made it (MPI runs with MPI_THREAD_FUNNELED). Throws: CommError, from every operation and its wait().
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int num_ranks() const = 0;
  /// This rank in the group of all ranks: the one that log lines and errors name.
  [[nodiscard]] virtual int world_rank() const = 0;
  /// "solo", "thread", "mpi", "nccl".
  [[nodiscard]] virtual std::string backend() const = 0;

  /// Sums `tensor` over the group, in place. The order of the sum is the backend's: where bits matter, see
  /// dist/exact_tree.h. Every backend sums float32, float64, int32 and int64; the other operations carry any dtype.
  /// Collective: every rank.
  [[nodiscard]] virtual Work all_reduce(at::Tensor tensor) = 0;
  /// outputs[k] (as `input`) becomes rank k's input. Collective: every rank.
  [[nodiscard]] virtual Work all_gather(std::vector<at::Tensor> outputs, at::Tensor input) = 0;
  /// `tensor` becomes the root's. Collective: every rank.  Requires: 0 <= root < num_ranks().
  [[nodiscard]] virtual Work broadcast(at::Tensor tensor, int root) = 0;
  /// Point to point; matches a recv of equal shape and dtype on the same channel, in order.
  [[nodiscard]] virtual Work send(at::Tensor tensor, int peer, Channel channel) = 0;
  [[nodiscard]] virtual Work recv(at::Tensor tensor, int peer, Channel channel) = 0;
  /// Blocks the host until every rank came. Collective: every rank.
  virtual void barrier() = 0;

  /// Ranks with equal `color` form a group, ordered by `key`, then by rank. Collective: every rank.
  /// Requires: color >= 0.
  [[nodiscard]] virtual std::unique_ptr<Communicator> split(int color, int key) = 0;

  /// Ends every rank of the job at once with `exit_code`; does not return where the backend has processes.
  virtual void abort(int exit_code) noexcept = 0;

  /// Traffic is counted here under the operation's name and `label`; null counts nothing. split() inherits it.
  void set_ledger(ByteLedger* ledger) { ledger_ = ledger; }
  [[nodiscard]] ByteLedger* ledger() const { return ledger_; }
  /// What the bytes of the next operations are ("gradient", "activation", "control").
  void set_traffic_label(std::string label) { traffic_label_ = std::move(label); }
  [[nodiscard]] const std::string& traffic_label() const { return traffic_label_; }

 protected:
  /// Adds the bytes that this rank gives: the input of a reduction, gather or send, a broadcast on its root. A recv
  /// gives nothing, and in a group of one rank nothing moves.
  void count(const char* operation, const at::Tensor& tensor) const;
  /// "all_reduce of Float [3, 4] on world rank 2 (rank 1 of 2, mpi)": how every CommError opens.
  [[nodiscard]] std::string describe_operation(const char* operation, const at::Tensor& tensor) const;
  /// Throws: CommError when `tensor` is undefined or not contiguous.
  void require_tensor(const char* operation, const at::Tensor& tensor) const;
  /// Throws: CommError unless there is one output per rank, each as `input`.
  void require_outputs(const char* operation, const std::vector<at::Tensor>& outputs, const at::Tensor& input) const;
  /// Throws: CommError when `root` is no rank of this group.
  void require_root(const char* operation, const at::Tensor& tensor, int root) const;
  /// Throws: CommError when `color` is negative.
  void require_color(int color) const;
  /// Throws: CommError when `peer` is no other rank of this group.
  void require_peer(const char* operation, const at::Tensor& tensor, int peer) const;

 private:
  ByteLedger* ledger_ = nullptr;
  std::string traffic_label_ = "control";
};

/// Labels the traffic of one scope and puts the former label back.
class TrafficLabelScope {
 public:
  TrafficLabelScope(Communicator& communicator, std::string label)
      : communicator_(communicator), former_(communicator.traffic_label()) {
    communicator_.set_traffic_label(std::move(label));
  }
  TrafficLabelScope(const TrafficLabelScope&) = delete;
  TrafficLabelScope& operator=(const TrafficLabelScope&) = delete;
  ~TrafficLabelScope() { communicator_.set_traffic_label(std::move(former_)); }

 private:
  Communicator& communicator_;
  std::string former_;
};

}  // namespace espalier::dist
