// SPDX-License-Identifier: Apache-2.0
#include "peft/lst_pruning.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/check.h"

namespace espalier::peft {
namespace {

using Indices = std::vector<std::int64_t>;

at::Tensor select(const at::Tensor& weight, int dim, const Indices& kept) {
  return weight.index_select(dim, at::tensor(kept, at::kLong));
}

/// |weight| in double, so that a product of three does not underflow.
at::Tensor importance(const at::Tensor& weight) {
  return weight.to(at::kDouble).abs();
}

/// Walks one block from the columns kept by the one before; afterwards `kept` are the rows kept last.
class BlockWalk {
 public:
  BlockWalk(const model::LayerPlan& layer, const WeightReader& read, std::int64_t reduction, Indices& kept)
      : layer_(layer), read_(read), reduction_(reduction), kept_(kept) {}

  PrunedBlock run() {
    // Query, key and value keep common rows, chosen over all heads at once: rows of different heads mix.
    keep_rows({"attention.query", "attention.key", "attention.value"});
    keep_rows({"attention.output"});
    slice_norm("attention.norm");
    keep_rows({"feed_forward.up"});
    keep_rows({"feed_forward.down"});
    slice_norm("feed_forward.norm");
    return std::move(pruned_);
  }

 private:
  /// Slices the columns by the kept set, scores each row over the joint linears, and makes the best rows the kept set.
  void keep_rows(const std::vector<std::string>& linears) {
    std::vector<at::Tensor> columns;
    at::Tensor joint;
    for (const std::string& linear : linears) {
      columns.push_back(select(read_(layer_, linear + ".weight"), 1, kept_));
      joint = joint.defined() ? joint.mul_(importance(columns.back())) : importance(columns.back());
    }
    kept_ = keep_largest(joint.sum(1), joint.size(0) / reduction_);
    for (std::size_t i = 0; i < linears.size(); ++i) {
      pruned_.emplace(linears[i] + ".weight", select(columns[i], 0, kept_).to(at::kFloat));
      slice(linears[i] + ".bias");
    }
  }

  void slice_norm(const std::string& norm) {
    slice(norm + ".weight");
    slice(norm + ".bias");
  }

  void slice(const std::string& role) { pruned_.emplace(role, select(read_(layer_, role), 0, kept_).to(at::kFloat)); }

  const model::LayerPlan& layer_;
  const WeightReader& read_;
  std::int64_t reduction_;
  Indices& kept_;
  PrunedBlock pruned_;
};

}  // namespace

std::vector<std::int64_t> keep_largest(const at::Tensor& scores, std::int64_t count) {
  const at::Tensor values = scores.to(at::kCPU, at::kDouble).contiguous();
  const double* score = values.const_data_ptr<double>();
  ESPALIER_CHECK(count >= 0 && count <= values.numel(), "{} of {}", count, values.numel());
  Indices kept(static_cast<std::size_t>(values.numel()));
  std::iota(kept.begin(), kept.end(), 0);
  std::stable_sort(kept.begin(), kept.end(), [score](std::int64_t a, std::int64_t b) { return score[a] > score[b]; });
  kept.resize(static_cast<std::size_t>(count));
  std::sort(kept.begin(), kept.end());
  return kept;
}

std::map<std::uint64_t, PrunedBlock> prune_blocks(const model::Backbone& backbone, std::int64_t reduction,
                                                  const WeightReader& read,
                                                  const std::function<bool(const model::LayerPlan&)>& is_wanted) {
  std::map<std::uint64_t, PrunedBlock> pruned;
  Indices kept;
  for (const model::LayerPlan& layer : backbone.chain) {
    if (layer.kind == model::LayerKind::kEmbedding) {
      // L1 over the vocabulary, without a double copy of the table.
      const at::Tensor table = read(layer, "token.weight");  // [V, D]
      kept = keep_largest(at::linalg_vector_norm(table, 1, at::IntArrayRef{0}, /*keepdim=*/false, at::kDouble),
                          backbone.width / reduction);
    } else if (layer.kind == model::LayerKind::kBlock) {
      PrunedBlock block = BlockWalk(layer, read, reduction, kept).run();
      if (is_wanted(layer)) {
        pruned.emplace(layer.index, std::move(block));
      }
    }
  }
  return pruned;
}

}  // namespace espalier::peft
