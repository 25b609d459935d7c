// SPDX-License-Identifier: Apache-2.0
// NCCL runs what is queued on a stream in order and its messages have no tags, so everything that must not wait for
// something else gets a communicator and a stream of its own: one lane for the collectives, one for every (sender,
// receiver, channel).
#include "dist/nccl_communicator.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <nccl.h>
#include <spdlog/fmt/fmt.h>

#include <chrono>
#include <cstring>
#include <exception>
#include <map>
#include <thread>
#include <tuple>
#include <utility>

#include "common/error.h"

namespace espalier::dist {

namespace {

using Clock = std::chrono::steady_clock;

// The first message of a lane waits until the peer comes to it, which may be a whole pipeline fill later.
constexpr std::chrono::minutes kSetupTimeout{10};
// Lanes run beside the model's kernels; a few blocks saturate a link between two devices.
constexpr int kMaxLaneBlocks = 8;

/// An NCCL communicator and the stream that all its work is queued on.
/// Owns: the communicator, which is aborted while unwinding, since its peers would not come.
class Lane {
 public:
  /// Collective: every rank of the lane.
  Lane(const ncclUniqueId& id, int num_ranks, int rank, at::Device device, int max_blocks, std::string name)
      : name_(std::move(name)),
        device_(device),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/true, device.index())) {
    const c10::cuda::CUDAGuard guard(device_);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    // A blocking call could not be given up when a peer is lost.
    config.blocking = 0;
    if (max_blocks > 0) {
      config.maxCTAs = max_blocks;
    }
    settle(ncclCommInitRankConfig(&comm_, num_ranks, id, rank, &config), "ncclCommInitRankConfig");
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;
  ~Lane() {
    if (comm_ == nullptr) {
      return;
    }
    if (std::uncaught_exceptions() > 0) {
      abort();
      return;
    }
    try {
      settle(ncclCommFinalize(comm_), "ncclCommFinalize");
      ncclCommDestroy(comm_);
    } catch (const CommError&) {
      abort();
    }
  }

  void abort() noexcept {
    if (comm_ != nullptr) {
      ncclCommAbort(std::exchange(comm_, nullptr));
    }
  }

  /// Throws: CommError unless the call succeeds within kSetupTimeout.
  void settle(ncclResult_t result, const char* call) {
    const auto deadline = Clock::now() + kSetupTimeout;
    while (result == ncclInProgress) {
      if (Clock::now() > deadline) {
        fail(call, "not done after 10 minutes; a peer did not come");
      }
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      const ncclResult_t asked = ncclCommGetAsyncError(comm_, &result);
      if (asked != ncclSuccess) {
        result = asked;
      }
    }
    if (result != ncclSuccess) {
      fail(call, fmt::format("{} ({})", ncclGetErrorString(result), ncclGetLastError(comm_)));
    }
  }

  [[nodiscard]] ncclComm_t comm() const { return comm_; }
  [[nodiscard]] const c10::cuda::CUDAStream& stream() const { return stream_; }
  [[nodiscard]] at::Device device() const { return device_; }

 private:
  [[noreturn]] void fail(const char* call, const std::string& text) const {
    throw CommError(fmt::format("NCCL {} on {}: {}: {}", name_, device_.str(), call, text));
  }

  std::string name_;
  at::Device device_;
  c10::cuda::CUDAStream stream_;
  ncclComm_t comm_ = nullptr;
};

/// Done when the lane's stream has passed the event.
class NcclOperation final : public PendingOperation {
 public:
  NcclOperation(const Lane& lane, std::vector<at::Tensor> kept) : device_(lane.device()), kept_(std::move(kept)) {
    event_.record(lane.stream());
    for (const at::Tensor& tensor : kept_) {
      tensor.record_stream(lane.stream().unwrap());
    }
  }
  void wait() override { event_.block(c10::cuda::getCurrentCUDAStream(device_.index())); }
  bool is_done() override { return event_.query(); }

 private:
  at::Device device_;
  at::cuda::CUDAEvent event_;
  std::vector<at::Tensor> kept_;
};

class NcclCommunicator final : public Communicator {
 public:
  /// Owns: `host`.
  NcclCommunicator(std::unique_ptr<Communicator> host, at::Device device)
      : host_(std::move(host)),
        device_(device),
        collectives_(shared_id(), host_->num_ranks(), host_->rank(), device, /*max_blocks=*/0,
                     fmt::format("collectives of {} ranks, world rank {}", host_->num_ranks(), host_->world_rank())) {}

  int rank() const override { return host_->rank(); }
  int num_ranks() const override { return host_->num_ranks(); }
  int world_rank() const override { return host_->world_rank(); }
  std::string backend() const override { return "nccl"; }

  Work all_reduce(at::Tensor tensor) override;
  Work all_gather(std::vector<at::Tensor> outputs, at::Tensor input) override;
  Work broadcast(at::Tensor tensor, int root) override;
  Work send(at::Tensor tensor, int peer, Channel channel) override;
  Work recv(at::Tensor tensor, int peer, Channel channel) override;
  void barrier() override { host_->barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) override;
  void abort(int exit_code) noexcept override;

 private:
  [[nodiscard]] ncclUniqueId shared_id();
  Lane& lane_to(int peer, Channel channel, bool is_send);
  void require_device(const char* operation, const at::Tensor& tensor) const;
  /// Queues `call` on the lane after the current stream's work.
  template <typename Call>
  Work run(Lane& lane, const char* name, std::vector<at::Tensor> kept, const Call& call);

  std::unique_ptr<Communicator> host_;
  at::Device device_;
  Lane collectives_;
  std::map<std::tuple<int, Channel, bool>, std::unique_ptr<Lane>> lanes_;  // peer, channel, whether this rank sends
};

at::Tensor tensor_of(const ncclUniqueId& id) {
  const at::Tensor bytes = at::empty({NCCL_UNIQUE_ID_BYTES}, at::kByte);
  std::memcpy(bytes.data_ptr(), id.internal, NCCL_UNIQUE_ID_BYTES);
  return bytes;
}

ncclUniqueId id_of(const at::Tensor& bytes) {
  ncclUniqueId id;
  std::memcpy(id.internal, bytes.data_ptr(), NCCL_UNIQUE_ID_BYTES);
  return id;
}

ncclUniqueId new_id() {
  ncclUniqueId id;
  const ncclResult_t result = ncclGetUniqueId(&id);
  if (result != ncclSuccess) {
    throw CommError(fmt::format("NCCL ncclGetUniqueId: {}", ncclGetErrorString(result)));
  }
  return id;
}

ncclUniqueId NcclCommunicator::shared_id() {
  const at::Tensor bytes = tensor_of(host_->rank() == 0 ? new_id() : ncclUniqueId{});
  host_->broadcast(bytes, 0).wait();
  return id_of(bytes);
}

Lane& NcclCommunicator::lane_to(int peer, Channel channel, bool is_send) {
  auto& lane = lanes_[{peer, channel, is_send}];
  if (lane == nullptr) {
    const at::Tensor bytes = tensor_of(is_send ? new_id() : ncclUniqueId{});
    // The id travels on the lane's own channel: lanes of one pair may be made in another order on either side.
    (is_send ? host_->send(bytes, peer, channel) : host_->recv(bytes, peer, channel)).wait();
    lane = std::make_unique<Lane>(id_of(bytes), /*num_ranks=*/2, is_send ? 0 : 1, device_, kMaxLaneBlocks,
                                  fmt::format("lane {} rank {} on channel {}, world rank {}", is_send ? "to" : "from",
                                              peer, static_cast<int>(channel), world_rank()));
  }
  return *lane;
}

void NcclCommunicator::require_device(const char* operation, const at::Tensor& tensor) const {
  require_tensor(operation, tensor);
  if (tensor.device() != device_) {
    throw CommError(fmt::format("{}: expected a tensor on {}, found one on {}", describe_operation(operation, tensor),
                                device_.str(), tensor.device().str()));
  }
}

template <typename Call>
Work NcclCommunicator::run(Lane& lane, const char* name, std::vector<at::Tensor> kept, const Call& call) {
  const c10::cuda::CUDAGuard guard(device_);
  at::cuda::CUDAEvent is_ready;
  is_ready.record(c10::cuda::getCurrentCUDAStream(device_.index()));
  is_ready.block(lane.stream());
  const c10::cuda::CUDAStreamGuard on_lane(lane.stream());
  call(lane, name);
  return Work(std::make_unique<NcclOperation>(lane, std::move(kept)));
}

Work NcclCommunicator::all_reduce(at::Tensor tensor) {
  require_device("all_reduce", tensor);
  ncclDataType_t type = ncclFloat32;
  switch (tensor.scalar_type()) {
    case at::kFloat:
      break;
    case at::kDouble:
      type = ncclFloat64;
      break;
    case at::kHalf:
      type = ncclFloat16;
      break;
    case at::kBFloat16:
      type = ncclBfloat16;
      break;
    case at::kInt:
      type = ncclInt32;
      break;
    case at::kLong:
      type = ncclInt64;
      break;
    default:
      throw CommError(describe_operation("all_reduce", tensor) +
                      ": expected float16, bfloat16, float32, float64, int32 or int64; convert the tensor");
  }
  count("all_reduce", tensor);
  if (tensor.numel() == 0) {
    return {};
  }
  return run(collectives_, "ncclAllReduce", {tensor}, [&](Lane& lane, const char* name) {
    const auto count = static_cast<std::size_t>(tensor.numel());
    lane.settle(ncclAllReduce(tensor.data_ptr(), tensor.data_ptr(), count, type, ncclSum, lane.comm(), lane.stream()),
                name);
  });
}

Work NcclCommunicator::all_gather(std::vector<at::Tensor> outputs, at::Tensor input) {
  require_device("all_gather", input);
  require_outputs("all_gather", outputs, input);
  count("all_gather", input);
  if (input.numel() == 0) {
    return {};
  }
  std::vector<at::Tensor> kept = outputs;
  kept.push_back(input);
  return run(collectives_, "ncclAllGather", std::move(kept), [&](Lane& lane, const char* name) {
    // Allocated on the lane's stream, like the copies out of it, so its memory is not handed out before they are done.
    const at::Tensor gathered = at::empty({num_ranks() * input.numel()}, input.options().requires_grad(false));
    lane.settle(
        ncclAllGather(input.data_ptr(), gathered.data_ptr(), input.nbytes(), ncclUint8, lane.comm(), lane.stream()),
        name);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const auto first = static_cast<std::int64_t>(i) * input.numel();
      outputs[i].detach().view({-1}).copy_(gathered.narrow(0, first, input.numel()));
    }
  });
}

Work NcclCommunicator::broadcast(at::Tensor tensor, int root) {
  require_device("broadcast", tensor);
  require_root("broadcast", tensor, root);
  if (rank() == root) {
    count("broadcast", tensor);
  }
  if (tensor.numel() == 0) {
    return {};
  }
  return run(collectives_, "ncclBroadcast", {tensor}, [&](Lane& lane, const char* name) {
    lane.settle(ncclBroadcast(tensor.data_ptr(), tensor.data_ptr(), tensor.nbytes(), ncclUint8, root, lane.comm(),
                              lane.stream()),
                name);
  });
}

Work NcclCommunicator::send(at::Tensor tensor, int peer, Channel channel) {
  require_device("send", tensor);
  require_peer("send", tensor, peer);
  count("send", tensor);
  if (tensor.numel() == 0) {
    return {};
  }
  return run(lane_to(peer, channel, /*is_send=*/true), "ncclSend", {tensor}, [&](Lane& lane, const char* name) {
    lane.settle(ncclSend(tensor.data_ptr(), tensor.nbytes(), ncclUint8, /*peer=*/1, lane.comm(), lane.stream()), name);
  });
}

Work NcclCommunicator::recv(at::Tensor tensor, int peer, Channel channel) {
  require_device("recv", tensor);
  require_peer("recv", tensor, peer);
  if (tensor.numel() == 0) {
    return {};
  }
  return run(lane_to(peer, channel, /*is_send=*/false), "ncclRecv", {tensor}, [&](Lane& lane, const char* name) {
    lane.settle(ncclRecv(tensor.data_ptr(), tensor.nbytes(), ncclUint8, /*peer=*/0, lane.comm(), lane.stream()), name);
  });
}

std::unique_ptr<Communicator> NcclCommunicator::split(int color, int key) {
  auto result = std::make_unique<NcclCommunicator>(host_->split(color, key), device_);
  result->set_ledger(ledger());
  return result;
}

void NcclCommunicator::abort(int exit_code) noexcept {
  for (auto& [place, lane] : lanes_) {
    if (lane != nullptr) {
      lane->abort();
    }
  }
  collectives_.abort();
  host_->abort(exit_code);
}

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host, at::Device device) {
  if (!device.is_cuda() || !device.has_index()) {
    throw CommError(fmt::format("NCCL: expected a CUDA device with its index, found {}", device.str()));
  }
  auto own = host.split(0, host.rank());
  // Unique ids are no payload.
  own->set_ledger(nullptr);
  auto result = std::make_unique<NcclCommunicator>(std::move(own), device);
  result->set_ledger(host.ledger());
  return result;
}

}  // namespace espalier::dist
