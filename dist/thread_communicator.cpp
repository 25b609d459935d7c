// SPDX-License-Identifier: Apache-2.0
// One mutex guards everything (Hub). A collective is a numbered slot into which every rank lays a copy of its input; a
// rank that waits until the slot is full computes its own result. Point to point, whoever comes second copies.
#include "dist/thread_communicator.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include "common/error.h"

namespace espalier::dist {

namespace {

/// What all ranks of one run_ranks() share: the lock, who waits for what, and the failure that ends them all.
class Hub {
 public:
  explicit Hub(int num_ranks) : waits_for_(static_cast<std::size_t>(num_ranks)), num_alive_(num_ranks) {}

  std::mutex mutex;

  /// Requires: the lock. To be called after every change that a waiting rank may wait for.
  void changed() {
    ++version_;
    num_blocked_ = 0;
    std::fill(waits_for_.begin(), waits_for_.end(), std::string());
    condition_.notify_all();
  }

  /// Requires: the lock.
  void fail(const std::string& text) {
    if (failure_.empty()) {
      failure_ = text;
    }
    changed();
  }

  /// Requires: the lock.
  void throw_if_failed(const std::string& operation) const {
    if (!failure_.empty()) {
      throw CommError(fmt::format("{}: {}", operation, failure_));
    }
  }

  template <typename Predicate>
  void wait_until(std::unique_lock<std::mutex>& lock, int world_rank, const std::string& operation,
                  const Predicate& is_ready) {
    while (true) {
      throw_if_failed(operation);
      if (is_ready()) {
        return;
      }
      waits_for_[static_cast<std::size_t>(world_rank)] = operation;
      ++num_blocked_;
      fail_if_all_wait();
      if (failure_.empty()) {
        condition_.wait(lock, [this, version = version_] { return version_ != version; });
      }
    }
  }

  void rank_ends() {
    const std::lock_guard lock(mutex);
    --num_alive_;
    fail_if_all_wait();
  }

 private:
  void fail_if_all_wait() {
    if (num_alive_ == 0 || num_blocked_ < num_alive_) {
      return;
    }
    std::string text = "every rank waits and none can go on:";
    for (const std::string& operation : waits_for_) {
      text += fmt::format(" [{}]", operation.empty() ? "ended" : operation);
    }
    fail(text);
  }

  std::condition_variable condition_;
  std::string failure_;
  std::vector<std::string> waits_for_;  // by world rank
  std::uint64_t version_ = 0;
  int num_alive_;
  int num_blocked_ = 0;  // ranks that found nothing ready since the last change
};

struct Slot {
  std::string signature;
  int first_world_rank = 0;
  std::vector<at::Tensor> inputs;  // by rank; copies, so that a result may be written in place
  int num_arrived = 0;
  int num_left = 0;
};

struct Transfer {
  at::Tensor tensor;
  std::string description;
  bool is_done = false;
};

struct Mailbox {
  std::deque<std::shared_ptr<Transfer>> sends;
  std::deque<std::shared_ptr<Transfer>> recvs;
};

struct Group;
struct ChildGroup {
  std::shared_ptr<Group> group;
  int num_missing = 0;  // members that did not fetch it yet
};

/// What the ranks of one communicator share. Guarded by Hub::mutex.
struct Group {
  std::vector<int> world_ranks;  // by rank
  std::map<std::int64_t, Slot> slots;
  std::map<std::tuple<int, int, Channel>, Mailbox> mailboxes;   // source, destination, channel
  std::map<std::pair<std::int64_t, int>, ChildGroup> children;  // number of the split, color
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Hub> hub, std::shared_ptr<Group> group, int rank)
      : hub_(std::move(hub)), group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int num_ranks() const override { return static_cast<int>(group_->world_ranks.size()); }
  int world_rank() const override { return group_->world_ranks[static_cast<std::size_t>(rank_)]; }
  std::string backend() const override { return "thread"; }

  Work all_reduce(at::Tensor tensor) override;
  Work all_gather(std::vector<at::Tensor> outputs, at::Tensor input) override;
  Work broadcast(at::Tensor tensor, int root) override;
  Work send(at::Tensor tensor, int peer, Channel channel) override;
  Work recv(at::Tensor tensor, int peer, Channel channel) override;
  void barrier() override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  void abort(int exit_code) noexcept override;

 private:
  using Finish = std::function<void(const std::vector<at::Tensor>& inputs)>;
  class Collective;
  class PointToPoint;

  /// Lays `input` into the next slot; `finish` gets every rank's copy inside wait().
  std::unique_ptr<PendingOperation> start(const char* operation, const at::Tensor& input, const std::string& detail,
                                          Finish finish);
  Work transfer(const char* operation, const at::Tensor& tensor, int peer, Channel channel);

  std::shared_ptr<Hub> hub_;
  std::shared_ptr<Group> group_;
  int rank_;
  std::int64_t next_slot_ = 0;
};

class ThreadCommunicator::Collective final : public PendingOperation {
 public:
  Collective(ThreadCommunicator& owner, std::int64_t slot, std::string operation, Finish finish)
      : hub_(owner.hub_),
        group_(owner.group_),
        world_rank_(owner.world_rank()),
        slot_(slot),
        operation_(std::move(operation)),
        finish_(std::move(finish)) {}

  void wait() override {
    std::vector<at::Tensor> inputs;
    {
      std::unique_lock lock(hub_->mutex);
      hub_->wait_until(lock, world_rank_, operation_, [this] { return is_full(); });
      Slot& slot = group_->slots.at(slot_);
      inputs = slot.inputs;
      if (++slot.num_left == static_cast<int>(group_->world_ranks.size())) {
        group_->slots.erase(slot_);
      }
    }
    finish_(inputs);
  }

  bool is_done() override {
    const std::lock_guard lock(hub_->mutex);
    hub_->throw_if_failed(operation_);
    return is_full();
  }

 private:
  bool is_full() const { return group_->slots.at(slot_).num_arrived == static_cast<int>(group_->world_ranks.size()); }

  std::shared_ptr<Hub> hub_;
  std::shared_ptr<Group> group_;
  int world_rank_;
  std::int64_t slot_;
  std::string operation_;
  Finish finish_;
};

class ThreadCommunicator::PointToPoint final : public PendingOperation {
 public:
  PointToPoint(std::shared_ptr<Hub> hub, int world_rank, std::shared_ptr<Transfer> transfer)
      : hub_(std::move(hub)), world_rank_(world_rank), transfer_(std::move(transfer)) {}

  void wait() override {
    std::unique_lock lock(hub_->mutex);
    hub_->wait_until(lock, world_rank_, transfer_->description, [this] { return transfer_->is_done; });
  }

  bool is_done() override {
    const std::lock_guard lock(hub_->mutex);
    hub_->throw_if_failed(transfer_->description);
    return transfer_->is_done;
  }

 private:
  std::shared_ptr<Hub> hub_;
  int world_rank_;
  std::shared_ptr<Transfer> transfer_;
};

std::unique_ptr<PendingOperation> ThreadCommunicator::start(const char* operation, const at::Tensor& input,
                                                            const std::string& detail, Finish finish) {
  const std::string description = describe_operation(operation, input);
  const std::string signature = fmt::format("{} of {} [{}]{}", operation, at::toString(input.scalar_type()),
                                            fmt::join(input.sizes(), ", "), detail);
  const at::Tensor copy = input.detach().clone();
  const std::int64_t number = next_slot_++;

  const std::lock_guard lock(hub_->mutex);
  hub_->throw_if_failed(description);
  Slot& slot = group_->slots[number];
  if (slot.num_arrived == 0) {
    slot.signature = signature;
    slot.first_world_rank = world_rank();
    slot.inputs.resize(group_->world_ranks.size());
  } else if (slot.signature != signature) {
    hub_->fail(fmt::format("ranks disagree on the next collective: world rank {} calls {}, world rank {} calls {}",
                           slot.first_world_rank, slot.signature, world_rank(), signature));
    hub_->throw_if_failed(description);
  }
  slot.inputs[static_cast<std::size_t>(rank_)] = copy;
  ++slot.num_arrived;
  hub_->changed();
  return std::make_unique<Collective>(*this, number, description, std::move(finish));
}

Work ThreadCommunicator::all_reduce(at::Tensor tensor) {
  require_tensor("all_reduce", tensor);
  count("all_reduce", tensor);
  return Work(
      start("all_reduce", tensor, "", [target = tensor.detach()](const std::vector<at::Tensor>& inputs) mutable {
        target.copy_(inputs.front());
        for (std::size_t i = 1; i < inputs.size(); ++i) {
          target.add_(inputs[i]);
        }
      }));
}

Work ThreadCommunicator::all_gather(std::vector<at::Tensor> outputs, at::Tensor input) {
  require_tensor("all_gather", input);
  require_outputs("all_gather", outputs, input);
  count("all_gather", input);
  return Work(start("all_gather", input, "", [outputs = std::move(outputs)](const std::vector<at::Tensor>& inputs) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      outputs[i].detach().copy_(inputs[i]);
    }
  }));
}

Work ThreadCommunicator::broadcast(at::Tensor tensor, int root) {
  require_tensor("broadcast", tensor);
  require_root("broadcast", tensor, root);
  if (rank_ == root) {
    count("broadcast", tensor);
  }
  return Work(start("broadcast", tensor, fmt::format(" from {}", root),
                    [target = tensor.detach(), root](const std::vector<at::Tensor>& inputs) {
                      target.copy_(inputs[static_cast<std::size_t>(root)]);
                    }));
}

Work ThreadCommunicator::transfer(const char* operation, const at::Tensor& tensor, int peer, Channel channel) {
  const bool is_send = std::string_view(operation) == "send";
  auto mine = std::make_shared<Transfer>();
  mine->tensor = tensor.detach();
  mine->description = fmt::format("{} {} rank {} on channel {}", describe_operation(operation, tensor),
                                  is_send ? "to" : "from", peer, static_cast<int>(channel));

  const std::lock_guard lock(hub_->mutex);
  hub_->throw_if_failed(mine->description);
  Mailbox& box = group_->mailboxes[is_send ? std::tuple(rank_, peer, channel) : std::tuple(peer, rank_, channel)];
  auto& others = is_send ? box.recvs : box.sends;
  if (others.empty()) {
    (is_send ? box.sends : box.recvs).push_back(mine);
  } else {
    const std::shared_ptr<Transfer> other = others.front();
    others.pop_front();
    at::Tensor& target = is_send ? other->tensor : mine->tensor;
    const at::Tensor& source = is_send ? mine->tensor : other->tensor;
    if (target.sizes() != source.sizes() || target.scalar_type() != source.scalar_type()) {
      hub_->fail(fmt::format("a send does not fit its recv: {}; {}", mine->description, other->description));
      hub_->throw_if_failed(mine->description);
    }
    target.copy_(source);
    mine->is_done = other->is_done = true;
    hub_->changed();
  }
  return Work(std::make_unique<PointToPoint>(hub_, world_rank(), mine));
}

Work ThreadCommunicator::send(at::Tensor tensor, int peer, Channel channel) {
  require_tensor("send", tensor);
  require_peer("send", tensor, peer);
  count("send", tensor);
  return transfer("send", tensor, peer, channel);
}

Work ThreadCommunicator::recv(at::Tensor tensor, int peer, Channel channel) {
  require_tensor("recv", tensor);
  require_peer("recv", tensor, peer);
  return transfer("recv", tensor, peer, channel);
}

void ThreadCommunicator::barrier() {
  start("barrier", at::empty({0}), "", [](const std::vector<at::Tensor>&) {})->wait();
}

std::unique_ptr<Communicator> ThreadCommunicator::split(int color, int key) {
  require_color(color);
  const std::int64_t number = next_slot_;
  std::vector<std::pair<int, int>> members;  // key, rank
  const auto choose = [&](const std::vector<at::Tensor>& inputs) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i][0].item<int>() == color) {
        members.emplace_back(inputs[i][1].item<int>(), static_cast<int>(i));
      }
    }
  };
  start("split", at::tensor({color, key}, at::kInt), "", choose)->wait();
  std::sort(members.begin(), members.end());

  const std::lock_guard lock(hub_->mutex);
  ChildGroup& child = group_->children[{number, color}];
  if (child.group == nullptr) {
    child.group = std::make_shared<Group>();
    child.num_missing = static_cast<int>(members.size());
    for (const auto& member : members) {
      child.group->world_ranks.push_back(group_->world_ranks[static_cast<std::size_t>(member.second)]);
    }
  }
  const auto place = std::find(members.begin(), members.end(), std::pair(key, rank_)) - members.begin();
  auto result = std::make_unique<ThreadCommunicator>(hub_, child.group, static_cast<int>(place));
  result->set_ledger(ledger());
  if (--child.num_missing == 0) {
    group_->children.erase({number, color});
  }
  return result;
}

void ThreadCommunicator::abort(int exit_code) noexcept {
  const std::lock_guard lock(hub_->mutex);
  hub_->fail(fmt::format("world rank {} ended the job with exit code {}", world_rank(), exit_code));
}

}  // namespace

void run_ranks(int num_ranks, const std::function<void(Communicator& world)>& body) {
  const auto hub = std::make_shared<Hub>(num_ranks);
  const auto group = std::make_shared<Group>();
  for (int rank = 0; rank < num_ranks; ++rank) {
    group->world_ranks.push_back(rank);
  }
  std::exception_ptr first_error;
  const auto record = [&](int rank, const char* text) {
    const std::lock_guard lock(hub->mutex);
    if (first_error == nullptr) {
      first_error = std::current_exception();
    }
    hub->fail(fmt::format("rank {} failed: {}", rank, text));
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(num_ranks));
  for (int rank = 0; rank < num_ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        ThreadCommunicator world(hub, group, rank);
        body(world);
      } catch (const std::exception& error) {
        record(rank, error.what());
      } catch (...) {
        record(rank, "an exception that is no std::exception");
      }
      hub->rank_ends();
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  if (first_error != nullptr) {
    std::rethrow_exception(first_error);
  }
}

}  // namespace espalier::dist
