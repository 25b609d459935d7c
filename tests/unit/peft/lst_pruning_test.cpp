// SPDX-License-Identifier: Apache-2.0
#include "peft/lst_pruning.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "peft/lst.h"
#include "stages.h"

namespace espalier::peft {
namespace {

using Indices = std::vector<std::int64_t>;

TEST(KeepLargest, KeepsAscendingIndicesAndBreaksTiesByIndex) {
  EXPECT_EQ(keep_largest(at::tensor({1.0, 5.0, 3.0, 4.0}), 2), (Indices{1, 3}));
  EXPECT_EQ(keep_largest(at::tensor({9.0, 5.0, 7.0, 8.0}), 3), (Indices{0, 2, 3}));
  EXPECT_EQ(keep_largest(at::tensor({2.0, 2.0, 3.0, 2.0, 2.0}), 3), (Indices{0, 1, 2}));
  EXPECT_EQ(keep_largest(at::tensor({2.0, 1.0}), 0), (Indices{}));
}

const auto every_layer = [](const model::LayerPlan& /*layer*/) { return true; };

/// Rows (or columns) whose size decides which are kept: `sizes` along `dim`, ones along the other.
at::Tensor graded(const std::vector<double>& sizes, int dim) {
  const at::Tensor values = at::tensor(sizes, at::kFloat);
  const auto length = static_cast<std::int64_t>(sizes.size());
  return (dim == 0 ? values.unsqueeze(1) : values.unsqueeze(0)).expand({length, length}).clone();
}

/// Two blocks of width 4 whose every weight is written down.
class HandMadeWalk : public ::testing::Test {
 protected:
  HandMadeWalk()
      : backbone_(plan_tiny({.width = 4, .num_blocks = 2, .num_heads = 1, .feed_forward_width = 4, .vocab_size = 4})) {
    set(0, "token.weight", graded({1, 5, 3, -5}, 1));  // columns 1, 3
    for (const int block : {1, 2}) {
      set(block, "attention.query.weight", at::ones({4, 4}));
      set(block, "attention.key.weight", at::ones({4, 4}));
      set(block, "attention.value.weight", graded({1, 2, 3, -9}, 0));   // rows 2, 3
      set(block, "attention.output.weight", graded({5, 1, 5, 1}, 0));   // rows 0, 2
      set(block, "feed_forward.up.weight", graded({0, 4, 6, 2}, 0));    // rows 1, 2
      set(block, "feed_forward.down.weight", graded({7, 7, 7, 7}, 0));  // a tie: rows 0, 1
      for (const char* role : {"attention.query", "attention.key", "attention.value", "attention.output",
                               "attention.norm", "feed_forward.up", "feed_forward.down", "feed_forward.norm"}) {
        set(block, std::string(role) + ".bias", at::tensor({10.0F, 11.0F, 12.0F, 13.0F}));
      }
      for (const char* role : {"attention.norm", "feed_forward.norm"}) {
        set(block, std::string(role) + ".weight", at::tensor({20.0F, 21.0F, 22.0F, 23.0F}));
      }
    }
  }

  void set(int layer, const std::string& role, const at::Tensor& value) { values_[{layer, role}] = value; }
  [[nodiscard]] at::Tensor get(int layer, const std::string& role) const { return values_.at({layer, role}); }

  [[nodiscard]] std::map<std::uint64_t, PrunedLayer> prune(const Pruning& pruning = {.reduction = 2}) const {
    const auto read = [this](const model::LayerPlan& layer, const std::string& role) {
      return get(static_cast<int>(layer.index), role);
    };
    Indices kept;
    return prune_layers(backbone_, {0, backbone_.num_layers()}, pruning, read, read, every_layer, kept);
  }

  void expect_kept(const PrunedLayer& block, int layer, const std::string& linear, const Indices& rows,
                   const Indices& columns) {
    const at::Tensor expected =
        get(layer, linear + ".weight").index({at::tensor(rows).unsqueeze(1), at::tensor(columns)});
    EXPECT_TRUE(at::equal(block.at(linear + ".weight"), expected)) << linear;
    expect_sliced(block, layer, linear + ".bias", rows);
  }
  void expect_sliced(const PrunedLayer& block, int layer, const std::string& role, const Indices& kept) {
    EXPECT_TRUE(at::equal(block.at(role), get(layer, role).index({at::tensor(kept)}))) << role;
  }

  model::Backbone backbone_;
  std::map<std::pair<int, std::string>, at::Tensor> values_;
};

TEST_F(HandMadeWalk, HandsTheKeptRowsOfEachSublayerToTheNextAsColumns) {
  // Telling columns apart shows that they follow the running set, and rows of columns that were dropped must not count.
  for (auto& [key, value] : values_) {
    if (key.first > 0 && key.second.ends_with(".weight") && value.dim() == 2) {
      value = value * at::tensor({1.0F, 1.01F, 1.02F, 1.03F});
    }
  }
  at::Tensor value = get(1, "attention.value.weight");
  value.select(0, 0).index_put_({at::tensor(Indices{0, 2})},
                                at::tensor({1000.0F, 1000.0F}));  // columns 0 and 2 are gone

  const auto pruned = prune();
  Indices columns{1, 3};
  for (const int layer : {1, 2}) {
    SCOPED_TRACE(layer);
    const PrunedLayer& block = pruned.at(static_cast<std::uint64_t>(layer));
    for (const char* linear : {"attention.query", "attention.key", "attention.value"}) {
      expect_kept(block, layer, linear, {2, 3}, columns);
    }
    expect_kept(block, layer, "attention.output", {0, 2}, {2, 3});
    expect_sliced(block, layer, "attention.norm.weight", {0, 2});
    expect_sliced(block, layer, "attention.norm.bias", {0, 2});
    expect_kept(block, layer, "feed_forward.up", {1, 2}, {0, 2});
    expect_kept(block, layer, "feed_forward.down", {0, 1}, {1, 2});
    expect_sliced(block, layer, "feed_forward.norm.weight", {0, 1});
    columns = {0, 1};
  }
}

TEST_F(HandMadeWalk, TellsProductsOfTinyWeightsApart) {
  for (const char* role : {"attention.query.weight", "attention.key.weight", "attention.value.weight"}) {
    set(1, role, graded({1e-20, 2e-20, 3e-20, 4e-20}, 0));  // a product of three is zero in fp32
  }
  expect_kept(prune().at(1), 1, "attention.query", {2, 3}, {1, 3});
}

TEST_F(HandMadeWalk, KeepsAsManyRowsOfEveryHeadWhenAsked) {
  backbone_ = plan_tiny({.width = 4, .num_blocks = 2, .num_heads = 2, .feed_forward_width = 4, .vocab_size = 4});
  set(1, "attention.value.weight", graded({9, 8, 1, 2}, 0));  // the two largest are those of the first head
  for (const bool by_head : {false, true}) {
    SCOPED_TRACE(by_head);
    const auto pruned = prune({.reduction = 2, .by_head = by_head});
    const PrunedLayer& block = pruned.at(1);
    const Indices rows = by_head ? Indices{0, 3} : Indices{0, 1};
    for (const char* linear : {"attention.query", "attention.key", "attention.value"}) {
      expect_kept(block, 1, linear, rows, {1, 3});
    }
    // Heads are columns of what follows, and none of its rows.
    expect_kept(block, 1, "attention.output", {0, 2}, rows);
    expect_kept(block, 1, "feed_forward.up", {1, 2}, {0, 2});
  }
}

TEST(PruneLayers, WalksDroppedBlocksToo) {
  const TinyModel tiny = make_tiny({});
  const auto read = [&](const model::LayerPlan& layer, const std::string& role) {
    return tiny.weights->get(tiny.backbone.family->stored_weight(layer, role).names.front());
  };
  Indices kept, kept_of_last;
  const model::LayerRange range{0, tiny.backbone.num_layers()};
  const auto all = prune_layers(tiny.backbone, range, {.reduction = 4}, read, read, every_layer, kept);
  const auto last = prune_layers(
      tiny.backbone, range, {.reduction = 4}, read, read, [](const auto& layer) { return layer.index == 4; },
      kept_of_last);
  ASSERT_EQ(all.size(), 4U);
  ASSERT_EQ(last.size(), 1U);
  for (const auto& [role, value] : all.at(4)) {
    EXPECT_TRUE(at::equal(last.at(4).at(role), value)) << role;
  }
}

TEST(PruneLayers, GoesOnFromWhatTheStageBelowKept) {
  const TinyModel tiny = make_tiny({});
  const auto read = [&](const model::LayerPlan& layer, const std::string& role) {
    return tiny.weights->get(tiny.backbone.family->stored_weight(layer, role).names.front());
  };
  Indices kept_of_all, kept;
  const int end = tiny.backbone.num_layers();
  const auto all = prune_layers(tiny.backbone, {0, end}, {.reduction = 4}, read, read, every_layer, kept_of_all);
  auto parts = prune_layers(tiny.backbone, {0, 3}, {.reduction = 4}, read, read, every_layer, kept);
  EXPECT_EQ(kept.size(), 4U);
  parts.merge(prune_layers(tiny.backbone, {3, end}, {.reduction = 4}, read, read, every_layer, kept));
  EXPECT_EQ(kept, kept_of_all);
  ASSERT_EQ(parts.size(), all.size());
  for (const auto& [index, layer] : all) {
    for (const auto& [role, value] : layer) {
      EXPECT_TRUE(at::equal(parts.at(index).at(role), value)) << index << " " << role;
    }
  }
}

TEST(PruneLayers, KeepsEverythingInOrderWithoutReduction) {
  const TinyModel tiny = make_tiny({});
  const auto read = [&](const model::LayerPlan& layer, const std::string& role) {
    return tiny.weights->get(tiny.backbone.family->stored_weight(layer, role).names.front());
  };
  Indices kept;
  for (const auto& [index, block] :
       prune_layers(tiny.backbone, {0, tiny.backbone.num_layers()}, {.reduction = 1}, read, read, every_layer, kept)) {
    for (const auto& [role, value] : block) {
      EXPECT_TRUE(at::equal(value, read(tiny.backbone.chain[index], role))) << role;
    }
  }
}

}  // namespace
}  // namespace espalier::peft
