// SPDX-License-Identifier: Apache-2.0
// The fixed binary tree along which `exact` adds gradients. Its leaves are the micro-batches of the global batch,
// padded with absent ones to a power of two; absent + x = x. Who adds which node does not matter, so the sum has the
// same bits on any layout. A range of leaves is covered by its canonical nodes: the largest nodes that lie inside it,
// at most 2 log2(n) of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace espalier::dist {

/// Covers the leaves [index << level, (index + 1) << level).
struct TreeNode {
  int level = 0;
  int index = 0;
  friend bool operator==(const TreeNode&, const TreeNode&) = default;
};

/// The canonical nodes of the leaves [first, end), in order. A range that reaches the last leaf takes the absent leaves
/// after it too, so that one replica has one node. An empty range has none. Requires: 0 <= first <= end <= num_leaves.
std::vector<TreeNode> canonical_nodes(int num_leaves, int first, int end);

/// Adds values of nodes that arrive from left to right, as a binary counter does: two siblings become their parent at
/// once, so log2(n) + 1 values live for a range that starts at leaf 0 (twice as many for any other). What is left are
/// canonical nodes.
class TreeSum {
 public:
  explicit TreeSum(int num_leaves = 0) : num_leaves_(num_leaves) {}

  /// An undefined `value` is absent. `is_scratch`: the value may be summed into.
  /// Requires: `node` begins where the former one ended (the first one may begin anywhere).
  void push(TreeNode node, at::Tensor value, bool is_scratch);
  void push_leaf(int leaf, at::Tensor value) {
    push({.level = 0, .index = leaf}, std::move(value), /*is_scratch=*/false);
  }
  /// Ends a range: if it reached the last leaf, the absent leaves after it are pushed. What is left are
  /// canonical_nodes().
  void close();

  [[nodiscard]] std::size_t num_nodes() const { return entries_.size(); }
  [[nodiscard]] TreeNode node(std::size_t i) const { return entries_[i].node; }
  /// Undefined when all leaves of the node were absent.
  [[nodiscard]] const at::Tensor& value(std::size_t i) const { return entries_[i].value; }
  /// False when value(i) is a tensor that somebody pushed and may still hold.
  [[nodiscard]] bool is_scratch(std::size_t i) const { return entries_[i].is_scratch; }

 private:
  struct Entry {
    TreeNode node;
    at::Tensor value;
    bool is_scratch = false;
  };
  static Entry merge(Entry left, Entry right);

  int num_leaves_;
  std::vector<Entry> entries_;
};

}  // namespace espalier::dist
