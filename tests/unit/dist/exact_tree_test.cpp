// SPDX-License-Identifier: Apache-2.0
#include "dist/exact_tree.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include <bit>

#include "common/error.h"

namespace espalier::dist {
namespace {

/// Values whose sum depends on the order of the additions.
at::Tensor leaf_value(int leaf) {
  return at::sin(at::arange(64, at::kFloat) * 1.7 + leaf * 0.9) * std::pow(10.0, leaf % 5 - 2);
}

/// The slow way: recursion over the padded tree. Undefined when every leaf below is absent.
at::Tensor tree_sum(int num_leaves, TreeNode node, const std::function<at::Tensor(int)>& value) {
  if (node.level == 0) {
    return node.index < num_leaves ? value(node.index) : at::Tensor();
  }
  const at::Tensor left = tree_sum(num_leaves, {node.level - 1, 2 * node.index}, value);
  const at::Tensor right = tree_sum(num_leaves, {node.level - 1, 2 * node.index + 1}, value);
  return !left.defined() ? right : !right.defined() ? left : left + right;
}

TEST(CanonicalNodes, CoverTheRangeExactlyInOrderWithTheFewestNodes) {
  for (int num_leaves = 1; num_leaves <= 33; ++num_leaves) {
    const int padded = static_cast<int>(std::bit_ceil(static_cast<unsigned>(num_leaves)));
    for (int first = 0; first <= num_leaves; ++first) {
      for (int end = first; end <= num_leaves; ++end) {
        const std::vector<TreeNode> nodes = canonical_nodes(num_leaves, first, end);
        int next = first;
        for (const TreeNode node : nodes) {
          ASSERT_EQ(node.index << node.level, next);
          next = (node.index + 1) << node.level;
        }
        ASSERT_TRUE(next == end || (end == num_leaves && next <= padded));
        ASSERT_TRUE(nodes.empty() || nodes.back().index << nodes.back().level < end) << "a node without a leaf";
        for (std::size_t i = 1; i < nodes.size(); ++i) {
          const bool are_siblings = nodes[i].level == nodes[i - 1].level && nodes[i].index % 2 == 1;
          ASSERT_FALSE(are_siblings);
        }
        ASSERT_LE(static_cast<int>(nodes.size()), std::max(1, 2 * std::countr_zero(static_cast<unsigned>(padded))));
      }
    }
  }
}

TEST(CanonicalNodes, OfEqualPowerOfTwoSharesAreOneEach) {
  for (int replica = 0; replica < 4; ++replica) {
    EXPECT_EQ(canonical_nodes(16, 4 * replica, 4 * replica + 4), (std::vector<TreeNode>{{2, replica}}));
  }
  EXPECT_EQ(canonical_nodes(5, 0, 5), (std::vector<TreeNode>{{3, 0}}));
  EXPECT_TRUE(canonical_nodes(5, 5, 5).empty());
  EXPECT_TRUE(canonical_nodes(0, 0, 0).empty());
}

TEST(TreeSum, LeavesTheCanonicalNodesWithTheBitsOfTheRecursiveSum) {
  for (int num_leaves = 1; num_leaves <= 17; ++num_leaves) {
    for (int first = 0; first < num_leaves; ++first) {
      for (int end = first + 1; end <= num_leaves; ++end) {
        TreeSum sum(num_leaves);
        for (int leaf = first; leaf < end; ++leaf) {
          sum.push_leaf(leaf, leaf_value(leaf));
        }
        sum.close();
        const std::vector<TreeNode> nodes = canonical_nodes(num_leaves, first, end);
        ASSERT_EQ(sum.num_nodes(), nodes.size());
        for (std::size_t i = 0; i < nodes.size(); ++i) {
          ASSERT_EQ(sum.node(i), nodes[i]);
          ASSERT_TRUE(sum.value(i).defined()) << num_leaves << ": " << first << " to " << end;
          ASSERT_TRUE(at::equal(sum.value(i), tree_sum(num_leaves, nodes[i], leaf_value)));
        }
      }
    }
  }
}

TEST(TreeSum, PassesAnAbsentLeafByWithoutAddingZeros) {
  for (int absent = 0; absent < 8; ++absent) {
    const auto value = [absent](int leaf) { return leaf == absent ? at::Tensor() : leaf_value(leaf); };
    TreeSum sum(8);
    for (int leaf = 0; leaf < 8; ++leaf) {
      sum.push_leaf(leaf, value(leaf));
    }
    ASSERT_EQ(sum.num_nodes(), 1U);
    EXPECT_TRUE(at::equal(sum.value(0), tree_sum(8, {3, 0}, value)));
  }
  TreeSum none(3);
  for (int leaf = 0; leaf < 3; ++leaf) {
    none.push_leaf(leaf, at::Tensor());
  }
  none.close();
  EXPECT_FALSE(none.value(0).defined());
}

TEST(TreeSum, KeepsAtMostLogarithmicallyManyValues) {
  TreeSum sum(64);
  for (int leaf = 0; leaf < 64; ++leaf) {
    sum.push_leaf(leaf, at::ones({1}));
    ASSERT_LE(sum.num_nodes(), 7U);
  }
}

TEST(TreeSum, LeavesPushedTensorsAlone) {
  const at::Tensor shared = at::ones({4});
  TreeSum sum(4);
  for (int leaf = 0; leaf < 4; ++leaf) {
    sum.push_leaf(leaf, shared);
  }
  EXPECT_TRUE(at::equal(sum.value(0), at::full({4}, 4.0F)));
  EXPECT_TRUE(at::equal(shared, at::ones({4})));
}

TEST(TreeSum, RefusesAGap) {
  TreeSum sum(4);
  sum.push_leaf(0, at::ones({1}));
  EXPECT_THROW(sum.push_leaf(2, at::ones({1})), InternalError);
}

}  // namespace
}  // namespace espalier::dist
