// SPDX-License-Identifier: Apache-2.0
// Both strategies sum locally along the tree as gradients arrive. At the exchange a tensor that no micro-batch of this
// replica reached is filled with -0.0, the neutral element of IEEE addition: x + (-0.0) has the bits of x, even for x =
// -0.0 and x = +0.0.
#include "dist/gradient_sync.h"

#include <ATen/ATen.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <optional>

#include "common/check.h"
#include "common/error.h"
#include "dist/exact_tree.h"

namespace espalier::dist {

namespace {

constexpr double kNeutral = -0.0;

/// The canonical nodes of every replica, which every replica knows: ranges are a pure function of the layout.
std::vector<std::vector<TreeNode>> nodes_of_replicas(int num_micro_batches, int num_replicas) {
  std::vector<std::vector<TreeNode>> nodes;
  for (int replica = 0; replica < num_replicas; ++replica) {
    const MicroBatchRange range = plan_micro_batches(num_micro_batches, num_replicas, replica);
    nodes.push_back(canonical_nodes(num_micro_batches, range.first, range.end));
  }
  return nodes;
}

/// What both strategies share: the local sums, and the step that they belong to.
class LocalSums : public GradientSync {
 public:
  LocalSums(const GradientSyncConfig& config, Communicator& replicas, const std::vector<at::Tensor>& shapes_like)
      : replicas_(replicas), is_exact_(config.reduction == "exact") {
    for (const at::Tensor& tensor : shapes_like) {
      shapes_.push_back(tensor.sizes().vec());
      options_.push_back(at::TensorOptions().device(tensor.device()).dtype(at::kFloat));
    }
  }

  void begin(int num_micro_batches, MicroBatchRange range) override {
    const MicroBatchRange plan = plan_micro_batches(num_micro_batches, replicas_.num_ranks(), replicas_.rank());
    ESPALIER_CHECK(plan.first == range.first && plan.end == range.end,
                   "replica {} of {} owns micro-batches {} to {} of {} by plan_micro_batches, found {} to {}",
                   replicas_.rank(), replicas_.num_ranks(), plan.first, plan.end, num_micro_batches, range.first,
                   range.end);
    ESPALIER_CHECK(!is_open_, "begin() before finish() of the former step");
    is_open_ = true;
    range_ = range;
    nodes_ = nodes_of_replicas(num_micro_batches, replicas_.num_ranks());
    num_rounds_ = 0;
    for (const auto& nodes : nodes_) {
      num_rounds_ = std::max(num_rounds_, static_cast<std::int64_t>(nodes.size()));
    }
    num_micro_batches_ = num_micro_batches;
    sums_.assign(shapes_.size(), TreeSum(num_micro_batches));
    next_micro_batch_.assign(shapes_.size(), range.first);
  }

  void ready(int index, int micro_batch, at::Tensor gradient) override {
    ESPALIER_CHECK(is_open_, "ready() before begin()");
    int& next = next_micro_batch_.at(static_cast<std::size_t>(index));
    ESPALIER_CHECK(next <= micro_batch && micro_batch < range_.end,
                   "trained tensor {}: micro-batch {} is not within {} to {}", index, micro_batch, next, range_.end);
    if (gradient.defined()) {
      ESPALIER_CHECK(gradient.sizes() == shapes_[static_cast<std::size_t>(index)],
                     "trained tensor {}: a gradient of another shape", index);
      gradient = gradient.detach().to(at::kFloat);
    }
    advance(index, micro_batch);
    sums_[static_cast<std::size_t>(index)].push_leaf(micro_batch, std::move(gradient));
    next = micro_batch + 1;
  }

 protected:
  /// Micro-batches before `micro_batch` that gave no gradient are absent.
  void advance(int index, int micro_batch) {
    for (int& next = next_micro_batch_[static_cast<std::size_t>(index)]; next < micro_batch; ++next) {
      sums_[static_cast<std::size_t>(index)].push_leaf(next, at::Tensor());
    }
  }
  [[nodiscard]] bool is_complete(int index) const {
    return next_micro_batch_[static_cast<std::size_t>(index)] == range_.end;
  }
  /// The local sum of tensor `index`, of which no gradient comes any more.
  TreeSum& closed_sum(int index) {
    advance(index, range_.end);
    TreeSum& sum = sums_[static_cast<std::size_t>(index)];
    sum.close();
    return sum;
  }
  void require_open() const { ESPALIER_CHECK(is_open_, "finish() before begin()"); }
  void end_step() {
    is_open_ = false;
    sums_.clear();
  }

  /// Buffers that this replica gives per tensor: its tree nodes, padded to the largest number of any replica; one for
  /// `fast`.
  [[nodiscard]] std::int64_t num_buffers() const { return is_exact_ ? num_rounds_ : 1; }

  /// Writes what this replica gives of tensor `index` into `buffers` [num_buffers, numel].
  void write_buffers(int index, const at::Tensor& buffers) {
    const TreeSum& sum = closed_sum(index);
    std::int64_t num_written = 0;
    for (std::size_t i = 0; i < sum.num_nodes(); ++i) {
      if (!sum.value(i).defined()) {
        if (is_exact_) {
          buffers[num_written++].fill_(kNeutral);
        }
        continue;
      }
      const at::Tensor value = sum.value(i).reshape({-1});
      if (is_exact_ || num_written == 0) {
        buffers[num_written++].copy_(value);
      } else {
        buffers[0].add_(value);
      }
    }
    for (; num_written < num_buffers(); ++num_written) {
      buffers[num_written].fill_(kNeutral);
    }
  }

  /// Finishes the tree from all replicas' buffers [num_buffers, numel] each. They are summed into.
  at::Tensor finish_tree(const std::vector<at::Tensor>& gathered) const {
    TreeSum tree(num_micro_batches_);
    for (std::size_t replica = 0; replica < nodes_.size(); ++replica) {
      for (std::size_t i = 0; i < nodes_[replica].size(); ++i) {
        tree.push(nodes_[replica][i], gathered[replica][static_cast<std::int64_t>(i)], /*is_scratch=*/true);
      }
    }
    tree.close();
    return tree.value(0);
  }

  /// Without a peer nothing moves: the root of the local tree is the sum.
  at::Tensor sum_alone(int index) {
    const TreeSum& sum = closed_sum(index);
    if (sum.num_nodes() == 0 || !sum.value(0).defined()) {
      return neutral(index);
    }
    // A leaf that is the whole sum may be shared with another weight, and the caller will scale the sums in place.
    return sum.is_scratch(0) ? sum.value(0) : sum.value(0).clone();
  }
  [[nodiscard]] at::Tensor neutral(int index) const {
    return at::full(shapes_[static_cast<std::size_t>(index)], kNeutral, options_[static_cast<std::size_t>(index)]);
  }
  [[nodiscard]] bool is_alone() const { return replicas_.num_ranks() == 1 || num_micro_batches_ == 0; }
  [[nodiscard]] int num_tensors() const { return static_cast<int>(shapes_.size()); }

  Communicator& replicas_;
  bool is_exact_;
  std::vector<std::vector<std::int64_t>> shapes_;
  std::vector<at::TensorOptions> options_;

 private:
  bool is_open_ = false;
  MicroBatchRange range_;
  int num_micro_batches_ = 0;
  std::vector<std::vector<TreeNode>> nodes_;  // by replica
  std::int64_t num_rounds_ = 0;
  std::vector<TreeSum> sums_;          // by trained tensor
  std::vector<int> next_micro_batch_;  // by trained tensor
};

/// One collective per tensor, after the backward.
class NaiveGradientSync final : public LocalSums {
 public:
  using LocalSums::LocalSums;

  std::vector<at::Tensor> finish() override {
    require_open();
    const TrafficLabelScope label(replicas_, "gradient");
    std::vector<at::Tensor> totals;
    totals.reserve(static_cast<std::size_t>(num_tensors()));
    for (int index = 0; index < num_tensors(); ++index) {
      totals.push_back(is_alone() ? sum_alone(index) : exchange(index));
    }
    end_step();
    return totals;
  }

 private:
  at::Tensor exchange(int index) {
    const auto i = static_cast<std::size_t>(index);
    const std::int64_t numel = c10::multiply_integers(shapes_[i]);
    const at::Tensor mine = at::empty({num_buffers(), numel}, options_[i]);
    write_buffers(index, mine);
    if (!is_exact_) {
      replicas_.all_reduce(mine).wait();
      return mine[0].view(shapes_[i]);
    }
    std::vector<at::Tensor> gathered;
    gathered.reserve(static_cast<std::size_t>(replicas_.num_ranks()));
    for (int replica = 0; replica < replicas_.num_ranks(); ++replica) {
      gathered.push_back(at::empty_like(mine));
    }
    replicas_.all_gather(gathered, mine).wait();
    return finish_tree(gathered).view(shapes_[i]);
  }
};

/// Tensors share flat buffers that are sent while the backward goes on. A backward reaches the last tensors first, so
/// buckets are filled from the end. They are launched strictly in order: collectives match by order, gradients may
/// arrive in any.
class BucketedGradientSync final : public LocalSums {
 public:
  BucketedGradientSync(const GradientSyncConfig& config, Communicator& replicas,
                       const std::vector<at::Tensor>& shapes_like)
      : LocalSums(config, replicas, shapes_like) {
    const std::int64_t max_elements = std::max<std::int64_t>(1, config.bucket_bytes / 4);
    for (int index = num_tensors() - 1; index >= 0; --index) {
      const std::int64_t numel = shapes_like[static_cast<std::size_t>(index)].numel();
      if (buckets_.empty() || buckets_.back().num_elements + numel > max_elements ||
          options_[static_cast<std::size_t>(buckets_.back().indices[0])].device() !=
              options_[static_cast<std::size_t>(index)].device()) {
        buckets_.emplace_back();
      }
      buckets_.back().indices.push_back(index);
      buckets_.back().num_elements += numel;
    }
  }

  void begin(int num_micro_batches, MicroBatchRange range) override {
    LocalSums::begin(num_micro_batches, range);
    num_launched_ = 0;
  }

  void ready(int index, int micro_batch, at::Tensor gradient) override {
    LocalSums::ready(index, micro_batch, std::move(gradient));
    if (is_alone()) {
      return;
    }
    while (num_launched_ < buckets_.size() && is_full(buckets_[num_launched_])) {
      launch(buckets_[num_launched_++]);
    }
    if (num_launched_ > 0) {
      // MPI moves bytes only inside its own calls.
      (void)buckets_[num_launched_ - 1].work.is_done();
    }
  }

  std::vector<at::Tensor> finish() override {
    require_open();
    std::vector<at::Tensor> totals(static_cast<std::size_t>(num_tensors()));
    if (is_alone()) {
      for (int index = 0; index < num_tensors(); ++index) {
        totals[static_cast<std::size_t>(index)] = sum_alone(index);
      }
    } else {
      while (num_launched_ < buckets_.size()) {
        launch(buckets_[num_launched_++]);
      }
      for (Bucket& bucket : buckets_) {
        collect(bucket, totals);
      }
    }
    end_step();
    return totals;
  }

 private:
  struct Bucket {
    std::vector<int> indices;
    std::int64_t num_elements = 0;
    // While it travels:
    at::Tensor mine;                   // [num_buffers, num_elements]
    std::vector<at::Tensor> gathered;  // by replica, as `mine`; exact only
    Work work;
  };

  [[nodiscard]] bool is_full(const Bucket& bucket) const {
    return std::all_of(bucket.indices.begin(), bucket.indices.end(), [this](int index) { return is_complete(index); });
  }

  void launch(Bucket& bucket) {
    const TrafficLabelScope label(replicas_, "gradient");
    bucket.mine =
        at::empty({num_buffers(), bucket.num_elements}, options_[static_cast<std::size_t>(bucket.indices[0])]);
    std::int64_t offset = 0;
    for (const int index : bucket.indices) {
      const std::int64_t numel = c10::multiply_integers(shapes_[static_cast<std::size_t>(index)]);
      write_buffers(index, bucket.mine.narrow(1, offset, numel));
      offset += numel;
    }
    if (!is_exact_) {
      bucket.work = replicas_.all_reduce(bucket.mine);
      return;
    }
    for (int replica = 0; replica < replicas_.num_ranks(); ++replica) {
      bucket.gathered.push_back(at::empty_like(bucket.mine));
    }
    bucket.work = replicas_.all_gather(bucket.gathered, bucket.mine);
  }

  void collect(Bucket& bucket, std::vector<at::Tensor>& totals) {
    bucket.work.wait();
    const at::Tensor flat = is_exact_ ? finish_tree(bucket.gathered) : bucket.mine[0];
    std::int64_t offset = 0;
    for (const int index : bucket.indices) {
      const auto& shape = shapes_[static_cast<std::size_t>(index)];
      const std::int64_t numel = c10::multiply_integers(shape);
      totals[static_cast<std::size_t>(index)] = flat.narrow(0, offset, numel).view(shape);
      offset += numel;
    }
    bucket.mine.reset();
    bucket.gathered.clear();
  }

  std::vector<Bucket> buckets_;
  std::size_t num_launched_ = 0;
};

}  // namespace

void describe(OptionTable& table, GradientSyncConfig& config) {
  table.add("gradient_sync.reduction", config.reduction)
      .choices({"exact", "fast"})
      .help(
          "exact: gradients are added along one fixed tree, so that the sum has the same bits for any number of "
          "replicas. fast: the communication library chooses the order.");
  table.add("gradient_sync.strategy", config.strategy)
      .choices({"naive", "bucketed"})
      .help(
          "bucketed: gradients travel in buckets while the backward goes on. naive: one message per tensor after it; "
          "the same sums, for comparison.");
  table.add("gradient_sync.bucket_bytes", config.bucket_bytes)
      .unit("bytes")
      .at_least(1)
      .help("Gradient sent per message. Larger: fewer messages. Smaller: more overlap with the backward.");
}

std::unique_ptr<GradientSync> make_gradient_sync(const GradientSyncConfig& config, Communicator& replicas,
                                                 const std::vector<at::Tensor>& shapes_like) {
  if (config.reduction != "exact" && config.reduction != "fast") {
    throw ConfigError(fmt::format("gradient_sync.reduction: expected exact or fast, found \"{}\"", config.reduction));
  }
  if (config.strategy == "naive") {
    return std::make_unique<NaiveGradientSync>(config, replicas, shapes_like);
  }
  if (config.strategy == "bucketed") {
    return std::make_unique<BucketedGradientSync>(config, replicas, shapes_like);
  }
  throw ConfigError(fmt::format("gradient_sync.strategy: expected naive or bucketed, found \"{}\"", config.strategy));
}

}  // namespace espalier::dist
