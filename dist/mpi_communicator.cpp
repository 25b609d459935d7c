// SPDX-License-Identifier: Apache-2.0
#include "dist/mpi_communicator.h"

#include <ATen/ATen.h>
#define OMPI_SKIP_MPICXX 1  // NOLINT(readability-identifier-naming): Open MPI's name
#include <mpi.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <limits>

#include "common/error.h"

namespace espalier::dist {

namespace {

void check_mpi(int code, const std::string& operation) {
  if (code == MPI_SUCCESS) {
    return;
  }
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw CommError(fmt::format("{}: MPI failed: {}", operation, text));
}

/// MPI calls of one operation: as many requests as the tensor has pieces. They are completed one by one: MPI_Waitall of
/// Open MPI 4.1.4 hung in 6 of 8 runs of three ranks when a message was longer than its buffer, where MPI_Wait returns
/// the error.
class MpiOperation final : public PendingOperation {
 public:
  explicit MpiOperation(std::string operation) : operation_(std::move(operation)) {}
  MpiOperation(const MpiOperation&) = delete;
  MpiOperation& operator=(const MpiOperation&) = delete;
  ~MpiOperation() override {
    if (num_complete_ < requests_.size()) {
      // Only while unwinding: MPI may still write here, so the buffers are given up instead of freed.
      for (at::Tensor& tensor : kept_) {
        (void)tensor.unsafeReleaseTensorImpl();
      }
    }
  }

  /// `tensor` lives as long as the operation.
  void keep(const at::Tensor& tensor) { kept_.push_back(tensor); }
  /// To be done in wait(), once every piece has arrived.
  void then(std::function<void()> finish) { finish_ = std::move(finish); }
  /// Requires: the request is active. `expected_bytes` is what a recv must find, or -1.
  template <typename Start>
  void start(const Start& start_request, int expected_bytes = -1) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(start_request(&request), operation_);
    requests_.push_back(request);
    expected_bytes_.push_back(expected_bytes);
  }

  void wait() override {
    for (; num_complete_ < requests_.size(); ++num_complete_) {
      MPI_Status status;
      check_mpi(MPI_Wait(&requests_[num_complete_], &status), operation_);
      check_size(status);
    }
    if (finish_) {
      std::exchange(finish_, nullptr)();
    }
  }

  bool is_done() override {
    for (; num_complete_ < requests_.size(); ++num_complete_) {
      MPI_Status status;
      int flag = 0;
      check_mpi(MPI_Test(&requests_[num_complete_], &flag, &status), operation_);
      if (flag == 0) {
        return false;
      }
      check_size(status);
    }
    return true;
  }

 private:
  void check_size(const MPI_Status& status) const {
    int found = 0;
    const int expected = expected_bytes_[num_complete_];
    if (expected >= 0 && MPI_Get_count(&status, MPI_BYTE, &found) == MPI_SUCCESS && found != expected) {
      throw CommError(
          fmt::format("{}: expected a message of {} bytes, found one of {}; sender and receiver disagree on the shape",
                      operation_, expected, found));
    }
  }

  std::string operation_;
  std::vector<MPI_Request> requests_;
  std::vector<int> expected_bytes_;
  std::vector<at::Tensor> kept_;
  std::function<void()> finish_;
  std::size_t num_complete_ = 0;
};

at::Tensor host_buffer(const at::Tensor& tensor, at::IntArrayRef sizes) {
  return at::empty(sizes, tensor.options().device(at::kCPU).pinned_memory(tensor.is_cuda()).requires_grad(false));
}

/// The tensor itself, or a pinned host copy of a CUDA tensor.
at::Tensor host_copy(const at::Tensor& tensor) {
  if (tensor.is_cpu()) {
    return tensor;
  }
  at::Tensor copy = host_buffer(tensor, tensor.sizes());
  copy.copy_(tensor);
  return copy;
}

class MpiCommunicator final : public Communicator {
 public:
  /// Owns: `owned`.
  MpiCommunicator(MPI_Comm owned, int world_rank, std::int64_t max_message_bytes)
      : comm_(owned), world_rank_(world_rank), max_message_bytes_(max_message_bytes) {
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &num_ranks_);
  }
  ~MpiCommunicator() override {
    // MPI_Comm_free is collective, and while one rank unwinds the others do not come.
    if (std::uncaught_exceptions() == 0) {
      MPI_Comm_free(&comm_);
    }
  }

  int rank() const override { return rank_; }
  int num_ranks() const override { return num_ranks_; }
  int world_rank() const override { return world_rank_; }
  std::string backend() const override { return "mpi"; }

  Work all_reduce(at::Tensor tensor) override;
  Work all_gather(std::vector<at::Tensor> outputs, at::Tensor input) override;
  Work broadcast(at::Tensor tensor, int root) override;
  Work send(at::Tensor tensor, int peer, Channel channel) override;
  Work recv(at::Tensor tensor, int peer, Channel channel) override;
  void barrier() override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  void abort(int exit_code) noexcept override;

 private:
  /// Calls `body(first_element, num_elements)` for pieces of at most max_message_bytes_.
  template <typename Body>
  void for_each_piece(const at::Tensor& tensor, const Body& body) const {
    const auto item_bytes = static_cast<std::int64_t>(tensor.element_size());
    const std::int64_t piece = std::max<std::int64_t>(1, max_message_bytes_ / item_bytes);
    for (std::int64_t first = 0; first < tensor.numel(); first += piece) {
      body(first, static_cast<int>(std::min(piece, tensor.numel() - first)));
    }
  }

  MPI_Comm comm_;
  int world_rank_;
  std::int64_t max_message_bytes_;
  int rank_ = 0;
  int num_ranks_ = 1;
};

std::byte* element(const at::Tensor& tensor, std::int64_t index) {
  return static_cast<std::byte*>(tensor.data_ptr()) + index * static_cast<std::int64_t>(tensor.element_size());
}

int bytes_of(const at::Tensor& tensor, int num_elements) {
  return num_elements * static_cast<int>(tensor.element_size());
}

/// After the operation a staged CUDA tensor gets what its host buffer holds.
void copy_back(MpiOperation& operation, const at::Tensor& tensor, const at::Tensor& host) {
  if (!tensor.is_cpu()) {
    // The pinned buffer may be freed at once: its allocator waits for the stream before it hands the memory out again.
    operation.then([tensor, host] { tensor.copy_(host, /*non_blocking=*/true); });
  }
}

Work MpiCommunicator::all_reduce(at::Tensor tensor) {
  require_tensor("all_reduce", tensor);
  const std::string description = describe_operation("all_reduce", tensor);
  MPI_Datatype type = MPI_DATATYPE_NULL;
  switch (tensor.scalar_type()) {
    case at::kFloat:
      type = MPI_FLOAT;
      break;
    case at::kDouble:
      type = MPI_DOUBLE;
      break;
    case at::kInt:
      type = MPI_INT32_T;
      break;
    case at::kLong:
      type = MPI_INT64_T;
      break;
    default:
      throw CommError(description +
                      ": expected float32, float64, int32 or int64, which MPI can sum; convert the tensor");
  }
  count("all_reduce", tensor);
  tensor = tensor.detach();
  const at::Tensor host = host_copy(tensor);
  auto operation = std::make_unique<MpiOperation>(description);
  operation->keep(host);
  for_each_piece(host, [&](std::int64_t first, int num) {
    operation->start([&](MPI_Request* request) {
      return MPI_Iallreduce(MPI_IN_PLACE, element(host, first), num, type, MPI_SUM, comm_, request);
    });
  });
  copy_back(*operation, tensor, host);
  return Work(std::move(operation));
}

Work MpiCommunicator::all_gather(std::vector<at::Tensor> outputs, at::Tensor input) {
  require_tensor("all_gather", input);
  require_outputs("all_gather", outputs, input);
  count("all_gather", input);
  input = input.detach();
  const at::Tensor host = host_copy(input);
  const at::Tensor gathered = host_buffer(input, {num_ranks_ * input.numel()});
  auto operation = std::make_unique<MpiOperation>(describe_operation("all_gather", input));
  operation->keep(host);
  operation->keep(gathered);
  // Piece by piece, so that `gathered` holds every rank's first piece, then every rank's second one, and so on.
  for_each_piece(host, [&](std::int64_t first, int num) {
    const int bytes = bytes_of(host, num);
    operation->start([&](MPI_Request* request) {
      return MPI_Iallgather(element(host, first), bytes, MPI_BYTE, element(gathered, first * num_ranks_), bytes,
                            MPI_BYTE, comm_, request);
    });
  });
  operation->then([this, outputs = std::move(outputs), host, gathered] {
    for_each_piece(host, [&](std::int64_t first, int num) {
      for (std::size_t i = 0; i < outputs.size(); ++i) {
        const std::int64_t start = first * num_ranks_ + static_cast<std::int64_t>(i) * num;
        outputs[i]
            .detach()
            .view({-1})
            .narrow(0, first, num)
            .copy_(gathered.narrow(0, start, num), /*non_blocking=*/true);
      }
    });
  });
  return Work(std::move(operation));
}

Work MpiCommunicator::broadcast(at::Tensor tensor, int root) {
  require_tensor("broadcast", tensor);
  require_root("broadcast", tensor, root);
  if (rank_ == root) {
    count("broadcast", tensor);
  }
  tensor = tensor.detach();
  const at::Tensor host = rank_ == root     ? host_copy(tensor)
                          : tensor.is_cpu() ? tensor
                                            : host_buffer(tensor, tensor.sizes());
  auto operation = std::make_unique<MpiOperation>(describe_operation("broadcast", tensor));
  operation->keep(host);
  for_each_piece(host, [&](std::int64_t first, int num) {
    operation->start([&](MPI_Request* request) {
      return MPI_Ibcast(element(host, first), bytes_of(host, num), MPI_BYTE, root, comm_, request);
    });
  });
  if (rank_ != root) {
    copy_back(*operation, tensor, host);
  }
  return Work(std::move(operation));
}

Work MpiCommunicator::send(at::Tensor tensor, int peer, Channel channel) {
  require_tensor("send", tensor);
  require_peer("send", tensor, peer);
  count("send", tensor);
  const at::Tensor host = host_copy(tensor.detach());
  auto operation = std::make_unique<MpiOperation>(
      fmt::format("{} to rank {} on channel {}", describe_operation("send", tensor), peer, static_cast<int>(channel)));
  operation->keep(host);
  for_each_piece(host, [&](std::int64_t first, int num) {
    operation->start([&](MPI_Request* request) {
      return MPI_Isend(element(host, first), bytes_of(host, num), MPI_BYTE, peer, static_cast<int>(channel), comm_,
                       request);
    });
  });
  return Work(std::move(operation));
}

Work MpiCommunicator::recv(at::Tensor tensor, int peer, Channel channel) {
  require_tensor("recv", tensor);
  require_peer("recv", tensor, peer);
  tensor = tensor.detach();
  const at::Tensor host = tensor.is_cpu() ? tensor : host_buffer(tensor, tensor.sizes());
  auto operation = std::make_unique<MpiOperation>(fmt::format(
      "{} from rank {} on channel {}", describe_operation("recv", tensor), peer, static_cast<int>(channel)));
  operation->keep(host);
  for_each_piece(host, [&](std::int64_t first, int num) {
    const int bytes = bytes_of(host, num);
    operation->start(
        [&](MPI_Request* request) {
          return MPI_Irecv(element(host, first), bytes, MPI_BYTE, peer, static_cast<int>(channel), comm_, request);
        },
        bytes);
  });
  copy_back(*operation, tensor, host);
  return Work(std::move(operation));
}

void MpiCommunicator::barrier() {
  check_mpi(MPI_Barrier(comm_), fmt::format("barrier on world rank {} of a group of {}", world_rank_, num_ranks_));
}

std::unique_ptr<Communicator> MpiCommunicator::split(int color, int key) {
  require_color(color);
  MPI_Comm child = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split(comm_, color, key, &child),
            fmt::format("split({}, {}) on world rank {}", color, key, world_rank_));
  auto result = std::make_unique<MpiCommunicator>(child, world_rank_, max_message_bytes_);
  result->set_ledger(ledger());
  return result;
}

void MpiCommunicator::abort(int exit_code) noexcept {
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) {
  int is_initialised = 0;
  MPI_Initialized(&is_initialised);
  if (is_initialised != 0) {
    throw CommError("MPI: expected to initialise it, found it initialised; one MpiEnvironment lives in main()");
  }
  int granted = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &granted), "MPI_Init_thread");
  if (granted < MPI_THREAD_FUNNELED) {
    throw CommError(
        "MPI: expected thread support of at least MPI_THREAD_FUNNELED, found MPI_THREAD_SINGLE; use another MPI build");
  }
}

MpiEnvironment::~MpiEnvironment() {
  if (std::uncaught_exceptions() == 0) {
    MPI_Finalize();
  }
}

bool MpiEnvironment::is_launched() {
  // Open MPI, PMIx launchers (srun --mpi=pmix), PMI launchers (MPICH, srun --mpi=pmi2).
  for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    if (std::getenv(variable) != nullptr) {
      return true;
    }
  }
  return false;
}

std::unique_ptr<Communicator> MpiEnvironment::make_world(std::int64_t max_message_bytes) {
  if (max_message_bytes < 8 || max_message_bytes > std::numeric_limits<int>::max()) {
    throw InternalError(
        fmt::format("make_world: expected max_message_bytes from 8 to 2^31 - 1, found {}", max_message_bytes));
  }
  MPI_Comm world = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup of all ranks");
  int world_rank = 0;
  MPI_Comm_rank(world, &world_rank);
  return std::make_unique<MpiCommunicator>(world, world_rank, max_message_bytes);
}

std::string mpi_library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string whole(text.data(), static_cast<std::size_t>(length));
  return whole.substr(0, whole.find(','));
}

}  // namespace espalier::dist
