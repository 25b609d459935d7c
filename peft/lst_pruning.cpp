// SPDX-License-Identifier: Apache-2.0
#include "peft/lst_pruning.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "common/check.h"
#include "model/slice.h"

namespace espalier::peft {
namespace {

using Indices = std::vector<std::int64_t>;

at::Tensor select(const at::Tensor& weight, int dim, const Indices& kept) {
  return weight.index_select(dim, at::tensor(kept, at::kLong).to(weight.device()));
}

/// Walks one layer after the other from the columns kept by the sublayer before.
class Walk {
 public:
  Walk(const Pruning& pruning, const WeightReader& read, const WeightReader& importance, Indices& kept)
      : pruning_(pruning), read_(read), importance_(importance), kept_(kept) {}

  /// The first kept set: dimensions of the first embedding.
  void embedding(const model::LayerPlan& layer) {
    const bool is_patch = layer.patch_embedding.has_value();
    const bool is_projected = is_patch || layer.embedding->token_width > 0;
    // Without a double copy of the table, or of the projection whose rows are the dimensions.
    const at::Tensor weight = importance_(layer, is_projected ? "projection.weight" : "token.weight");
    const at::Tensor table = is_projected ? weight.flatten(1).transpose(0, 1) : weight;  // [V, D]
    kept_ = keep_largest(at::linalg_vector_norm(table, 1, at::IntArrayRef{0}, /*keepdim=*/false, at::kDouble),
                         table.size(1) / pruning_.reduction);
  }

  PrunedLayer block(const model::LayerPlan& layer) {
    start(layer);
    const model::BlockSpec& spec = *layer.block;
    std::vector<std::string> up = {"feed_forward.up"};
    if (spec.is_gated) {
      up.emplace_back("feed_forward.gate");
    }
    branch(spec, "attention.norm", [&] { attention("attention", spec); });
    if (spec.has_cross_attention) {
      branch(spec, "cross_attention.norm", [&] { attention("cross_attention", spec); });
    }
    branch(spec, "feed_forward.norm", [&] {
      keep_rows(up);
      keep_rows({"feed_forward.down"});
    });
    return std::move(pruned_);
  }

  PrunedLayer final(const model::LayerPlan& layer) {
    start(layer);
    slice_norm("norm");
    return std::move(pruned_);
  }

 private:
  void start(const model::LayerPlan& layer) {
    layer_ = &layer;
    pruned_.clear();
    roles_.clear();
    model::make_layer(layer)->visit_weights(
        [&](const std::string& role, at::Tensor&, const std::vector<std::int64_t>&) { roles_.insert(role); });
  }

  template <typename Sublayers>
  void branch(const model::BlockSpec& spec, const std::string& norm, const Sublayers& sublayers) {
    if (spec.norm_place == model::NormPlace::kBefore) {
      slice_norm(norm);
    }
    sublayers();
    if (spec.norm_place == model::NormPlace::kAfter) {
      slice_norm(norm);
    }
  }

  void attention(const std::string& role, const model::BlockSpec& spec) {
    const std::string query = role + ".query", key = role + ".key", value = role + ".value";
    if (spec.num_key_value_heads == spec.num_heads) {
      // Query, key and value keep common rows, by default chosen over all heads at once: rows of different heads mix.
      keep_rows({query, key, value}, spec.num_heads);
    } else {
      const Indices columns = kept_;
      keep_rows({key, value}, spec.num_key_value_heads);
      kept_ = columns;
      keep_rows({query}, spec.num_heads);
    }
    keep_rows({role + ".output"});
  }

  /// Slices the columns by the kept set, scores each row over the joint linears, and makes the best rows the kept set.
  void keep_rows(const std::vector<std::string>& linears, std::int64_t num_heads = 1) {
    at::Tensor joint;
    for (const std::string& linear : linears) {
      // In double, so that a product of three does not underflow.
      const at::Tensor score = select(importance_(*layer_, linear + ".weight"), 1, kept_).to(at::kDouble).abs();
      joint = joint.defined() ? joint.mul_(score) : score;
    }
    const at::Tensor scores = joint.sum(1);
    const Indices columns = std::exchange(kept_, {});
    const std::int64_t groups = pruning_.by_head ? num_heads : 1;
    const std::int64_t rows = scores.size(0) / groups;
    for (std::int64_t group = 0; group < groups; ++group) {
      for (const std::int64_t row : keep_largest(scores.narrow(0, group * rows, rows), rows / pruning_.reduction)) {
        kept_.push_back(group * rows + row);
      }
    }
    for (const std::string& linear : linears) {
      const at::Tensor weight = select(select(read_(*layer_, linear + ".weight"), 1, columns), 0, kept_);
      pruned_.emplace(linear + ".weight", weight.to(at::kFloat));
      slice(linear + ".bias");
    }
  }

  void slice_norm(const std::string& norm) {
    slice(norm + ".weight");
    slice(norm + ".bias");
  }

  void slice(const std::string& role) {
    if (roles_.contains(role)) {
      pruned_.emplace(role, select(read_(*layer_, role), 0, kept_).to(at::kFloat));
    }
  }

  Pruning pruning_;
  const WeightReader& read_;
  const WeightReader& importance_;
  const model::LayerPlan* layer_ = nullptr;
  std::set<std::string> roles_;
  Indices& kept_;
  PrunedLayer pruned_;
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

std::map<std::uint64_t, PrunedLayer> prune_layers(const model::Backbone& backbone, model::LayerRange range,
                                                  const Pruning& pruning, const WeightReader& read,
                                                  const WeightReader& importance,
                                                  const std::function<bool(const model::LayerPlan&)>& is_wanted,
                                                  std::vector<std::int64_t>& kept) {
  std::map<std::uint64_t, PrunedLayer> pruned;
  Walk walk(pruning, read, importance, kept);
  for (int index = range.first; index < range.end; ++index) {
    const model::LayerPlan& layer = backbone.layer(index);
    if (index == 0) {
      walk.embedding(layer);  // a decoder goes on from what the encoder kept
    }
    if (layer.kind != model::LayerKind::kBlock && layer.kind != model::LayerKind::kFinal) {
      continue;
    }
    PrunedLayer rest = layer.block ? walk.block(layer) : walk.final(layer);
    if (is_wanted(layer)) {
      pruned.emplace(layer.index, std::move(rest));
    }
  }
  return pruned;
}

}  // namespace espalier::peft
