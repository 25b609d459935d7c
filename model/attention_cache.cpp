// SPDX-License-Identifier: Apache-2.0
#include "model/attention_cache.h"

#include <ATen/ATen.h>

namespace espalier::model {

AttentionCache::KeyValue AttentionCache::extend(const LayerPlace& place, const KeyValue& fresh) {
  auto& entry = entries_[key_of(place, /*is_memory=*/false)];
  entry = entry.first.defined()
              ? KeyValue{at::cat({entry.first, fresh.first}, 2), at::cat({entry.second, fresh.second}, 2)}
              : fresh;
  return entry;
}

void AttentionCache::reorder(const at::Tensor& rows) {
  for (auto& [key, entry] : entries_) {
    const auto there = rows.to(entry.first.device());
    entry = {entry.first.index_select(0, there), entry.second.index_select(0, there)};
  }
}

}  // namespace espalier::model
