// SPDX-License-Identifier: Apache-2.0
#include "dist/gradient_sync.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include <random>

#include "common/byte_ledger.h"
#include "common/error.h"
#include "dist/exact_tree.h"
#include "dist/solo_communicator.h"
#include "dist/thread_communicator.h"

namespace espalier::dist {
namespace {

constexpr int kNumTensors = 5;

std::vector<at::Tensor> trained() {
  return {at::empty({3, 7}), at::empty({1}), at::empty({40}), at::empty({2, 2, 5}), at::empty({0})};
}

/// What a micro-batch contributes to a tensor: sums depend on the order, some contributions are absent, one is all
/// -0.0.
at::Tensor gradient(int index, int micro_batch) {
  if ((index + 2 * micro_batch) % 5 == 3 || index == 1) {
    return {};
  }
  const at::Tensor like = trained()[static_cast<std::size_t>(index)];
  const at::Tensor values = at::sin(at::arange(like.numel(), at::kFloat) * 1.3 + index * 2.1 + micro_batch * 0.7);
  return micro_batch == 0 && index == 2 ? (values * 0.0).abs().neg()
                                        : (values * std::pow(10.0, micro_batch % 4)).view(like.sizes());
}

/// Equal values, with the signs of zeros.
bool same_bits(const at::Tensor& left, const at::Tensor& right) {
  return left.sizes() == right.sizes() &&
         at::equal(left.contiguous().view(at::kInt), right.contiguous().view(at::kInt));
}

/// The slow way: recursion over the padded tree.
at::Tensor tree_sum(int num_micro_batches, int index, int first, int end) {
  if (first >= num_micro_batches) {
    return {};
  }
  if (end - first == 1) {
    return gradient(index, first);
  }
  const at::Tensor left = tree_sum(num_micro_batches, index, first, (first + end) / 2);
  const at::Tensor right = tree_sum(num_micro_batches, index, (first + end) / 2, end);
  return !left.defined() ? right : !right.defined() ? left : left + right;
}

std::vector<at::Tensor> expected_sums(int num_micro_batches) {
  std::vector<at::Tensor> sums;
  for (int index = 0; index < kNumTensors; ++index) {
    const at::Tensor sum = tree_sum(num_micro_batches, index, 0, 16);
    sums.push_back(sum.defined() ? sum
                                 : at::full(trained()[static_cast<std::size_t>(index)].sizes(), -0.0, at::kFloat));
  }
  return sums;
}

/// Two steps, so that nothing of the first one stays. Tensors arrive in an order of each rank's own.
std::vector<at::Tensor> run_steps(GradientSync& sync, const Communicator& replicas, int num_micro_batches) {
  const MicroBatchRange range = plan_micro_batches(num_micro_batches, replicas.num_ranks(), replicas.rank());
  std::vector<int> order = {0, 1, 2, 3, 4};
  std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<unsigned>(replicas.rank())));
  std::vector<at::Tensor> sums;
  for (int step = 0; step < 2; ++step) {
    sync.begin(num_micro_batches, range);
    for (int micro_batch = range.first; micro_batch < range.end; ++micro_batch) {
      for (const int index : order) {
        sync.ready(index, micro_batch, gradient(index, micro_batch));
      }
    }
    sums = sync.finish();
  }
  return sums;
}

TEST(GradientSync, ExactSumsHaveTheSameBitsForAnyNumberOfReplicasAndBothStrategies) {
  for (int num_micro_batches = 1; num_micro_batches <= 9; ++num_micro_batches) {
    const std::vector<at::Tensor> expected = expected_sums(num_micro_batches);
    for (int num_replicas = 1; num_replicas <= 4; ++num_replicas) {
      for (const GradientSyncConfig& config : {GradientSyncConfig{"exact", "naive", 1},
                                               {"exact", "bucketed", 1},
                                               {"exact", "bucketed", 120},
                                               {"exact", "bucketed", 1 << 20}}) {
        run_ranks(num_replicas, [&](Communicator& replicas) {
          const auto sync = make_gradient_sync(config, replicas, trained());
          const std::vector<at::Tensor> sums = run_steps(*sync, replicas, num_micro_batches);
          ASSERT_EQ(sums.size(), expected.size());
          for (std::size_t i = 0; i < sums.size(); ++i) {
            EXPECT_TRUE(same_bits(sums[i], expected[i]))
                << "tensor " << i << ", " << num_micro_batches << " micro-batches, " << num_replicas << " replicas, "
                << config.strategy << " with " << config.bucket_bytes << " bytes:\n"
                << sums[i] << "\nexpected\n"
                << expected[i];
          }
        });
      }
    }
  }
}

TEST(GradientSync, FastSumsAreCloseToTheExactOnes) {
  for (int num_replicas = 1; num_replicas <= 4; ++num_replicas) {
    for (const std::string strategy : {"naive", "bucketed"}) {
      run_ranks(num_replicas, [&](Communicator& replicas) {
        const auto sync = make_gradient_sync({"fast", strategy, 120}, replicas, trained());
        const std::vector<at::Tensor> sums = run_steps(*sync, replicas, 7);
        const std::vector<at::Tensor> expected = expected_sums(7);
        for (std::size_t i = 0; i < sums.size(); ++i) {
          EXPECT_TRUE(at::allclose(sums[i], expected[i], 1e-5, 1e-3));
        }
      });
    }
  }
}

TEST(GradientSync, MovesTheTrainedBytesOncePerTreeNodeAndNothingForOneReplica) {
  constexpr std::int64_t kTrainedBytes = (21 + 1 + 40 + 20) * 4;
  const auto bytes_per_step = [](const GradientSyncConfig& config, int num_replicas, int num_micro_batches) {
    std::int64_t bytes = -1;
    run_ranks(num_replicas, [&](Communicator& replicas) {
      ByteLedger ledger;
      replicas.set_ledger(&ledger);
      const auto sync = make_gradient_sync(config, replicas, trained());
      (void)run_steps(*sync, replicas, num_micro_batches);
      if (replicas.rank() == 0) {
        bytes = ledger.traffic(config.reduction == "exact" ? "all_gather" : "all_reduce", "gradient") / 2;
        std::int64_t total = 0;
        for (const auto& [key, value] : ledger.traffic()) {
          total += value;
        }
        EXPECT_EQ(total, 2 * bytes) << "nothing else moves";
      }
      replicas.set_ledger(nullptr);
    });
    return bytes;
  };
  for (const std::string strategy : {"naive", "bucketed"}) {
    EXPECT_EQ(bytes_per_step({"exact", strategy, 100}, 1, 8), 0);
    EXPECT_EQ(bytes_per_step({"exact", strategy, 100}, 2, 8), kTrainedBytes);
    EXPECT_EQ(bytes_per_step({"exact", strategy, 100}, 4, 4), kTrainedBytes);
    EXPECT_EQ(bytes_per_step({"exact", strategy, 100}, 3, 9), 2 * kTrainedBytes);
    EXPECT_EQ(bytes_per_step({"fast", strategy, 100}, 3, 9), kTrainedBytes);
  }
}

/// Counts the operations that started and those waited for.
class Spy final : public Communicator {
 public:
  explicit Spy(Communicator& inner) : inner_(inner) {}
  int rank() const override { return inner_.rank(); }
  int num_ranks() const override { return inner_.num_ranks(); }
  int world_rank() const override { return inner_.world_rank(); }
  std::string backend() const override { return "spy"; }
  Work all_reduce(at::Tensor tensor) override { return inner_.all_reduce(std::move(tensor)); }
  Work all_gather(std::vector<at::Tensor> outputs, at::Tensor input) override {
    started.push_back(input.numel());
    return inner_.all_gather(std::move(outputs), std::move(input));
  }
  Work broadcast(at::Tensor tensor, int root) override { return inner_.broadcast(std::move(tensor), root); }
  Work send(at::Tensor tensor, int peer, Channel channel) override {
    return inner_.send(std::move(tensor), peer, channel);
  }
  Work recv(at::Tensor tensor, int peer, Channel channel) override {
    return inner_.recv(std::move(tensor), peer, channel);
  }
  void barrier() override { inner_.barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) override { return inner_.split(color, key); }
  void abort(int exit_code) noexcept override { inner_.abort(exit_code); }

  std::vector<std::int64_t> started;

 private:
  Communicator& inner_;
};

TEST(GradientSync, LaunchesAFullBucketDuringTheBackwardAndInBucketOrder) {
  run_ranks(2, [](Communicator& replicas) {
    Spy spy(replicas);
    const auto sync =
        make_gradient_sync({"exact", "bucketed", 1}, spy, {at::empty({1}), at::empty({2}), at::empty({3})});
    sync->begin(2, plan_micro_batches(2, 2, replicas.rank()));
    const int micro_batch = replicas.rank();
    sync->ready(0, micro_batch, at::ones({1}));
    sync->ready(1, micro_batch, at::ones({2}));
    EXPECT_TRUE(spy.started.empty()) << "the bucket of the last tensor goes first";
    sync->ready(2, micro_batch, at::ones({3}));
    EXPECT_EQ(spy.started, (std::vector<std::int64_t>{3, 2, 1}));
    for (const at::Tensor& sum : sync->finish()) {
      EXPECT_TRUE(at::equal(sum, at::full_like(sum, 2)));
    }
  });
}

TEST(GradientSync, GivesSumsThatTheCallerMayScaleInPlace) {
  for (const std::string strategy : {"naive", "bucketed"}) {
    SoloCommunicator alone;
    const at::Tensor shared = at::ones({2});
    const auto sync = make_gradient_sync({"exact", strategy, 100}, alone, {at::empty({2}), at::empty({2})});
    sync->begin(1, {0, 1});
    sync->ready(0, 0, shared);
    sync->ready(1, 0, shared);
    for (const at::Tensor& sum : sync->finish()) {
      sum.mul_(3);
      EXPECT_TRUE(at::equal(sum, at::full({2}, 3.0F)));
    }
    EXPECT_TRUE(at::equal(shared, at::ones({2})));
  }
}

TEST(GradientSync, TakesStridedAndHalfPrecisionGradientsAndGivesFloat) {
  SoloCommunicator alone;
  const auto sync = make_gradient_sync({}, alone, {at::empty({2, 3})});
  sync->begin(2, {0, 2});
  sync->ready(0, 0, at::ones({3, 2}).t());
  sync->ready(0, 1, at::ones({2, 3}, at::kBFloat16));
  const at::Tensor sum = sync->finish().at(0);
  EXPECT_EQ(sum.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(sum, at::full({2, 3}, 2.0F)));
}

TEST(GradientSync, RefusesBrokenPromises) {
  SoloCommunicator alone;
  const auto sync = make_gradient_sync({}, alone, {at::empty({2})});
  EXPECT_THROW(sync->ready(0, 0, at::ones({2})), InternalError);
  EXPECT_THROW(sync->finish(), InternalError);
  EXPECT_THROW(sync->begin(4, {0, 2}), InternalError);
  sync->begin(2, {0, 2});
  EXPECT_THROW(sync->ready(0, 0, at::ones({3})), InternalError);
  sync->ready(0, 1, at::ones({2}));
  EXPECT_THROW(sync->ready(0, 1, at::ones({2})), InternalError) << "twice";
  EXPECT_THROW(sync->ready(0, 2, at::ones({2})), InternalError) << "outside the range";
  EXPECT_TRUE(at::equal(sync->finish().at(0), at::ones({2})));
  EXPECT_THROW((void)make_gradient_sync({"exakt", "naive", 1}, alone, {}), ConfigError);
  EXPECT_THROW((void)make_gradient_sync({"exact", "lazy", 1}, alone, {}), ConfigError);
}

TEST(GradientSync, DescribesItsOptions) {
  GradientSyncConfig config;
  OptionTable table;
  describe(table, config);
  table.read_flags(
      {"--gradient_sync.reduction=fast", "--gradient_sync.strategy=naive", "--gradient_sync.bucket_bytes=5"});
  EXPECT_EQ(config.reduction, "fast");
  EXPECT_EQ(config.strategy, "naive");
  EXPECT_EQ(config.bucket_bytes, 5);
  EXPECT_THROW(table.read_flags({"--gradient_sync.reduction=slow"}), ConfigError);
}

}  // namespace
}  // namespace espalier::dist
