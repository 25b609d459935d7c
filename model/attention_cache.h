// SPDX-License-Identifier: Apache-2.0
// Keys and values of the tokens already generated, so that each further token costs one forward of itself. Blocks find
// their own by their place in the chain: the side network's blocks have places of their own, and so caches of their
// own.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <tuple>
#include <utility>

#include "model/context.h"

namespace espalier::model {

/// B rows, G key/value heads, S tokens so far, W head width. One for each stage and batch of rows. Thread: not shared.
class AttentionCache {
 public:
  using KeyValue = std::pair<at::Tensor, at::Tensor>;  ///< [B, G, S, W] each

  /// Tokens of the generating stack that every cache holds.
  [[nodiscard]] std::int64_t num_tokens() const { return num_tokens_; }
  /// Called when all layers have run: their caches have `count` tokens more.
  void advance(std::int64_t count) { num_tokens_ += count; }

  /// Appends what a block's self-attention made of the new tokens, [B, G, new, W]; returns keys and values of all.
  KeyValue extend(const LayerPlace& place, const KeyValue& fresh);
  /// Keys and values of a block's memory, made once.
  template <typename Make>
  const KeyValue& memory(const LayerPlace& place, const Make& make) {
    auto& entry = entries_[key_of(place, /*is_memory=*/true)];
    if (!entry.first.defined()) entry = make();
    return entry;
  }
  /// Row i goes on from what was row rows[i], int64 [new B]; also to more rows or fewer.
  void reorder(const at::Tensor& rows);

 private:
  using Key = std::tuple<int, std::uint64_t, bool>;
  static Key key_of(const LayerPlace& place, bool is_memory) {
    return {static_cast<int>(place.domain), place.layer_index, is_memory};
  }

  std::map<Key, KeyValue> entries_;
  std::int64_t num_tokens_ = 0;
};

}  // namespace espalier::model
