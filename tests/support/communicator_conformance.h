// SPDX-License-Identifier: Apache-2.0
// What every communicator must do, whatever carries it: one list of cases that run inside each rank. Host arithmetic is
// the oracle. Cases hold for any number of ranks; point to point needs two.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "common/byte_ledger.h"
#include "common/error.h"
#include "dist/communicator.h"

namespace espalier::testing {

struct ConformanceCase {
  const char* name;
  void (*body)(dist::Communicator& group, at::Device device);
  friend std::ostream& operator<<(std::ostream& stream, const ConformanceCase& self) { return stream << self.name; }
};

namespace conformance {

using dist::Channel;
using dist::Communicator;
using dist::Work;

/// Values that differ by rank, place and `seed`, exact in every dtype (bfloat16 holds integers up to 256).
inline at::Tensor pattern(at::ScalarType type, std::int64_t numel, int rank, int seed = 0) {
  return ((at::arange(numel, at::kLong) * 3 + rank * 7 + seed * 11) % 120).to(type);
}

inline void expect_equal(const at::Tensor& found, const at::Tensor& expected) {
  EXPECT_EQ(found.scalar_type(), expected.scalar_type());
  EXPECT_TRUE(at::equal(found.cpu(), expected.cpu())) << "found " << found << "\nexpected " << expected;
}

inline std::vector<at::Tensor> outputs_for(const Communicator& group, const at::Tensor& like) {
  std::vector<at::Tensor> outputs;
  for (int rank = 0; rank < group.num_ranks(); ++rank) {
    outputs.push_back(at::full_like(like, 99));
  }
  return outputs;
}

constexpr at::ScalarType kSummed[] = {at::kFloat, at::kDouble, at::kInt, at::kLong};
constexpr at::ScalarType kCarried[] = {at::kFloat, at::kDouble,   at::kInt, at::kLong,
                                       at::kByte,  at::kBFloat16, at::kHalf};
constexpr Channel kChannels[] = {Channel::kForward, Channel::kBackward, Channel::kTied, Channel::kControl};

inline void all_reduce_sums_over_every_rank(Communicator& group, at::Device device) {
  for (const at::ScalarType type : kSummed) {
    const at::Tensor tensor = pattern(type, 1000, group.rank()).view({10, 100}).to(device);
    at::Tensor expected = at::zeros({10, 100}, type);
    for (int rank = 0; rank < group.num_ranks(); ++rank) {
      expected += pattern(type, 1000, rank).view({10, 100});
    }
    group.all_reduce(tensor).wait();
    expect_equal(tensor, expected);
  }
}

inline void all_gather_gives_every_rank_every_input(Communicator& group, at::Device device) {
  for (const at::ScalarType type : kCarried) {
    const at::Tensor input = pattern(type, 37, group.rank()).to(device);
    const std::vector<at::Tensor> outputs = outputs_for(group, input);
    group.all_gather(outputs, input).wait();
    for (int rank = 0; rank < group.num_ranks(); ++rank) {
      expect_equal(outputs[static_cast<std::size_t>(rank)], pattern(type, 37, rank));
    }
    expect_equal(input, pattern(type, 37, group.rank()));
  }
}

inline void broadcast_gives_the_root_s_tensor_from_each_root(Communicator& group, at::Device device) {
  for (int root = 0; root < group.num_ranks(); ++root) {
    for (const at::ScalarType type : kCarried) {
      const at::Tensor tensor = pattern(type, 41, group.rank()).to(device);
      group.broadcast(tensor, root).wait();
      expect_equal(tensor, pattern(type, 41, root));
    }
  }
}

/// Every rank sends to every other one, all dtypes and channels; receives are posted first and in another order than
/// the sends.
inline void point_to_point_keeps_order_on_every_channel(Communicator& group, at::Device device) {
  constexpr int kNumMessages = 3;
  for (int distance = 1; distance < group.num_ranks(); ++distance) {
    const int to = (group.rank() + distance) % group.num_ranks();
    const int from = (group.rank() - distance + group.num_ranks()) % group.num_ranks();
    std::vector<Work> works;
    std::vector<at::Tensor> found, expected;
    // Rank 0 of a ring must not begin like the others where a first message blocks until its peer comes.
    const bool sends_first = group.rank() < to;
    const auto send_all = [&] {
      for (int message = 0; message < kNumMessages; ++message) {
        for (const Channel channel : kChannels) {
          const int seed = message * 4 + static_cast<int>(channel);
          works.push_back(group.send(pattern(kCarried[seed % 7], 50, group.rank(), seed).to(device), to, channel));
        }
      }
    };
    const auto receive_all = [&] {
      for (const Channel channel : kChannels) {
        for (int message = 0; message < kNumMessages; ++message) {
          const int seed = message * 4 + static_cast<int>(channel);
          expected.push_back(pattern(kCarried[seed % 7], 50, from, seed));
          found.push_back(at::zeros_like(expected.back(), at::TensorOptions().device(device)));
          works.push_back(group.recv(found.back(), from, channel));
        }
      }
    };
    if (sends_first) {
      send_all();
      receive_all();
    } else {
      receive_all();
      send_all();
    }
    for (Work& work : works) {
      work.wait();
    }
    for (std::size_t i = 0; i < found.size(); ++i) {
      expect_equal(found[i], expected[i]);
    }
  }
}

/// Rank 1 receives channel by channel what rank 0 sent message by message.
inline void channels_do_not_wait_for_each_other(Communicator& group, at::Device device) {
  if (group.num_ranks() > 1 && group.rank() == 0) {
    std::vector<Work> works;
    for (const Channel channel : kChannels) {
      works.push_back(group.send(at::full({3000}, static_cast<float>(channel), device), 1, channel));
    }
    for (Work& work : works) {
      work.wait();
    }
  } else if (group.rank() == 1) {
    // Lanes may be made at the first message, which both sides do in the same order here; their contents are waited for
    // backwards.
    std::vector<Work> works;
    std::vector<at::Tensor> found;
    for (const Channel channel : kChannels) {
      found.push_back(at::zeros({3000}, device));
      works.push_back(group.recv(found.back(), 0, channel));
    }
    for (std::size_t i = works.size(); i-- > 0;) {
      works[i].wait();
      expect_equal(found[i], at::full({3000}, static_cast<float>(i)));
    }
  }
  group.barrier();
}

inline void several_operations_are_in_flight_at_once(Communicator& group, at::Device device) {
  std::vector<at::Tensor> tensors;
  std::vector<Work> works;
  for (int i = 0; i < 8; ++i) {
    tensors.push_back(pattern(at::kFloat, 2000 + i, group.rank(), i).to(device));
    works.push_back(i % 2 == 0 ? group.all_reduce(tensors.back())
                               : group.broadcast(tensors.back(), i % group.num_ranks()));
  }
  for (int i = 7; i >= 0; --i) {
    const auto at_index = static_cast<std::size_t>(i);
    works[at_index].wait();
    at::Tensor expected = pattern(at::kFloat, 2000 + i, i % group.num_ranks(), i);
    if (i % 2 == 0) {
      expected.zero_();
      for (int rank = 0; rank < group.num_ranks(); ++rank) {
        expected += pattern(at::kFloat, 2000 + i, rank, i);
      }
    }
    expect_equal(tensors[at_index], expected);
  }
}

inline void a_work_says_when_it_is_done_and_may_be_dropped(Communicator& group, at::Device device) {
  const at::Tensor polled = at::ones({100}, device);
  Work work = group.all_reduce(polled);
  while (!work.is_done()) {
  }
  work.wait();
  expect_equal(polled, at::full({100}, static_cast<float>(group.num_ranks())));
  EXPECT_TRUE(work.is_done());

  const at::Tensor dropped = at::ones({100}, device);
  { const Work unattended = group.all_reduce(dropped); }
  expect_equal(dropped, at::full({100}, static_cast<float>(group.num_ranks())));
}

inline void empty_tensors_are_legal_everywhere(Communicator& group, at::Device device) {
  const at::Tensor empty = at::empty({0, 5}, device);
  group.all_reduce(empty).wait();
  group.broadcast(empty, group.num_ranks() - 1).wait();
  const std::vector<at::Tensor> outputs = outputs_for(group, empty);
  group.all_gather(outputs, empty).wait();
  if (group.num_ranks() > 1 && group.rank() < 2) {
    Work work = group.rank() == 0 ? group.send(empty, 1, Channel::kForward) : group.recv(empty, 0, Channel::kForward);
    work.wait();
  }
  group.barrier();
}

inline void a_scalar_and_a_tensor_that_requires_grad_travel(Communicator& group, at::Device device) {
  at::Tensor scalar = at::full({}, group.rank() + 1.0, at::TensorOptions(device).dtype(at::kDouble));
  group.all_reduce(scalar).wait();
  EXPECT_EQ(scalar.item<double>(), group.num_ranks() * (group.num_ranks() + 1) / 2.0);
  at::Tensor weight = at::full({4}, static_cast<float>(group.rank()), device).requires_grad_(true);
  group.broadcast(weight, group.num_ranks() - 1).wait();
  expect_equal(weight.detach(), at::full({4}, static_cast<float>(group.num_ranks() - 1)));
}

inline void split_groups_by_color_and_orders_by_key(Communicator& group, at::Device device) {
  const int color = group.rank() % 2;
  const std::unique_ptr<Communicator> half = group.split(color, -group.rank());
  std::vector<int> members;
  for (int rank = group.num_ranks() - 1; rank >= 0; --rank) {
    if (rank % 2 == color) {
      members.push_back(rank);
    }
  }
  ASSERT_EQ(half->num_ranks(), static_cast<int>(members.size()));
  EXPECT_EQ(members[static_cast<std::size_t>(half->rank())], group.rank());
  EXPECT_EQ(half->world_rank(), group.world_rank());
  EXPECT_EQ(half->ledger(), group.ledger());
  EXPECT_EQ(half->backend(), group.backend());

  const at::Tensor mine = at::full({3}, static_cast<float>(group.rank()), device);
  const std::vector<at::Tensor> outputs = outputs_for(*half, mine);
  half->all_gather(outputs, mine).wait();
  for (std::size_t i = 0; i < members.size(); ++i) {
    expect_equal(outputs[i], at::full({3}, static_cast<float>(members[i])));
  }
  // Traffic of the parts and of the whole does not mix.
  const at::Tensor in_half = at::ones({2}, device), in_group = at::ones({2}, device);
  Work first = color == 0 ? half->all_reduce(in_half) : group.all_reduce(in_group);
  Work second = color == 0 ? group.all_reduce(in_group) : half->all_reduce(in_half);
  second.wait();
  first.wait();
  expect_equal(in_half, at::full({2}, static_cast<float>(half->num_ranks())));
  expect_equal(in_group, at::full({2}, static_cast<float>(group.num_ranks())));
  group.barrier();
}

inline void the_ledger_counts_what_a_rank_gives(Communicator& group, at::Device device) {
  ByteLedger ledger;
  ByteLedger* const former = group.ledger();
  group.set_ledger(&ledger);
  const bool has_peers = group.num_ranks() > 1;
  {
    const dist::TrafficLabelScope label(group, "gradient");
    group.all_reduce(at::ones({100}, device)).wait();
    const at::Tensor input = at::ones({10}, at::TensorOptions(device).dtype(at::kLong));
    group.all_gather(outputs_for(group, input), input).wait();
  }
  group.broadcast(at::ones({7}, device), 0).wait();
  if (has_peers && group.rank() < 2) {
    const at::Tensor message = at::ones({5}, at::TensorOptions(device).dtype(at::kHalf));
    Work work = group.rank() == 0 ? group.send(message, 1, Channel::kTied) : group.recv(message, 0, Channel::kTied);
    work.wait();
  }
  group.set_ledger(former);
  EXPECT_EQ(ledger.traffic("all_reduce", "gradient"), has_peers ? 400 : 0);
  EXPECT_EQ(ledger.traffic("all_gather", "gradient"), has_peers ? 80 : 0);
  EXPECT_EQ(ledger.traffic("broadcast", "control"), has_peers && group.rank() == 0 ? 28 : 0);
  EXPECT_EQ(ledger.traffic("send", "control"), has_peers && group.rank() == 0 ? 10 : 0);
  EXPECT_EQ(ledger.traffic("recv", "control"), 0);
}

inline void misuse_is_refused_with_operation_shape_and_rank(Communicator& group, at::Device device) {
  const at::Tensor fine = at::ones({2, 3}, device);
  const auto expect_refused = [&](const auto& call, const std::string& operation) {
    try {
      call();
      ADD_FAILURE() << operation << " was not refused";
    } catch (const CommError& error) {
      EXPECT_NE(std::string(error.what()).find(operation), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("world rank " + std::to_string(group.world_rank())), std::string::npos)
          << error.what();
    }
  };
  expect_refused([&] { group.all_reduce(fine.t()).wait(); }, "all_reduce of Float [3, 2]");
  expect_refused([&] { group.all_reduce(at::Tensor()).wait(); }, "all_reduce of an undefined tensor");
  expect_refused([&] { group.broadcast(fine, group.num_ranks()).wait(); }, "broadcast of Float [2, 3]");
  expect_refused([&] { group.send(fine, group.rank(), Channel::kForward).wait(); }, "send of Float [2, 3]");
  expect_refused([&] { group.recv(fine, -1, Channel::kForward).wait(); }, "recv of Float [2, 3]");
  expect_refused([&] { group.all_gather({}, fine).wait(); }, "all_gather of Float [2, 3]");
  expect_refused([&] { (void)group.split(-1, 0); }, "split");
}

}  // namespace conformance

inline const std::vector<ConformanceCase>& conformance_cases() {
  using namespace conformance;  // NOLINT(google-build-using-namespace): a list of its own names
  static const std::vector<ConformanceCase> cases = {
      {"AllReduceSumsOverEveryRank", all_reduce_sums_over_every_rank},
      {"AllGatherGivesEveryRankEveryInput", all_gather_gives_every_rank_every_input},
      {"BroadcastGivesTheRootsTensorFromEachRoot", broadcast_gives_the_root_s_tensor_from_each_root},
      {"PointToPointKeepsOrderOnEveryChannel", point_to_point_keeps_order_on_every_channel},
      {"ChannelsDoNotWaitForEachOther", channels_do_not_wait_for_each_other},
      {"SeveralOperationsAreInFlightAtOnce", several_operations_are_in_flight_at_once},
      {"AWorkSaysWhenItIsDoneAndMayBeDropped", a_work_says_when_it_is_done_and_may_be_dropped},
      {"EmptyTensorsAreLegalEverywhere", empty_tensors_are_legal_everywhere},
      {"AScalarAndATensorThatRequiresGradTravel", a_scalar_and_a_tensor_that_requires_grad_travel},
      {"SplitGroupsByColorAndOrdersByKey", split_groups_by_color_and_orders_by_key},
      {"TheLedgerCountsWhatARankGives", the_ledger_counts_what_a_rank_gives},
      {"MisuseIsRefusedWithOperationShapeAndRank", misuse_is_refused_with_operation_shape_and_rank},
  };
  return cases;
}

}  // namespace espalier::testing
