// SPDX-License-Identifier: Apache-2.0
#include "dist/exact_tree.h"

#include <ATen/ATen.h>

#include <bit>

#include "common/check.h"

namespace espalier::dist {

namespace {

int padded(int num_leaves) {
  return static_cast<int>(std::bit_ceil(static_cast<unsigned>(num_leaves)));
}

int first_leaf(TreeNode node) {
  return node.index << node.level;
}
int end_leaf(TreeNode node) {
  return (node.index + 1) << node.level;
}

/// The largest nodes inside [first, end), without regard to padding.
std::vector<TreeNode> cover(int first, int end) {
  std::vector<TreeNode> nodes;
  while (first < end) {
    int level = 0;
    while (first % (2 << level) == 0 && first + (2 << level) <= end) {
      ++level;
    }
    nodes.push_back({.level = level, .index = first >> level});
    first = end_leaf(nodes.back());
  }
  return nodes;
}

}  // namespace

std::vector<TreeNode> canonical_nodes(int num_leaves, int first, int end) {
  ESPALIER_CHECK(0 <= first && first <= end && end <= num_leaves, "leaves {} to {} of {}", first, end, num_leaves);
  std::vector<TreeNode> nodes = cover(first, first < end && end == num_leaves ? padded(num_leaves) : end);
  while (!nodes.empty() && first_leaf(nodes.back()) >= num_leaves) {
    nodes.pop_back();
  }
  return nodes;
}

void TreeSum::push(TreeNode node, at::Tensor value, bool is_scratch) {
  ESPALIER_CHECK(entries_.empty() || end_leaf(entries_.back().node) == first_leaf(node), "leaf {} after leaf {}",
                 first_leaf(node), end_leaf(entries_.back().node));
  Entry entry{.node = node, .value = std::move(value), .is_scratch = is_scratch};
  while (!entries_.empty() && entry.node.index % 2 == 1 && entries_.back().node.level == entry.node.level) {
    entry = merge(std::move(entries_.back()), std::move(entry));
    entries_.pop_back();
  }
  entries_.push_back(std::move(entry));
}

void TreeSum::close() {
  if (entries_.empty() || end_leaf(entries_.back().node) < num_leaves_) {
    return;
  }
  for (const TreeNode node : cover(end_leaf(entries_.back().node), padded(num_leaves_))) {
    push(node, at::Tensor(), /*is_scratch=*/false);
  }
  while (first_leaf(entries_.back().node) >= num_leaves_) {
    entries_.pop_back();
  }
}

TreeSum::Entry TreeSum::merge(Entry left, Entry right) {
  const TreeNode parent{.level = left.node.level + 1, .index = left.node.index / 2};
  if (!left.value.defined() || !right.value.defined()) {
    Entry present = left.value.defined() ? std::move(left) : std::move(right);
    present.node = parent;
    return present;
  }
  // IEEE addition commutes, so it does not matter which of the two buffers takes the sum. A pushed leaf is left alone:
  // autograd may give one tensor as the gradient of two weights.
  if (left.is_scratch) {
    left.value.add_(right.value);
  } else if (right.is_scratch) {
    right.value.add_(left.value);
    left.value = std::move(right.value);
  } else {
    left.value = at::add(left.value, right.value);
  }
  return {.node = parent, .value = std::move(left.value), .is_scratch = true};
}

}  // namespace espalier::dist
