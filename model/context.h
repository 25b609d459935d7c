// SPDX-License-Identifier: Apache-2.0
// What a forward pass must know besides its tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "common/random.h"

namespace espalier::model {

class AttentionCache;

struct ForwardContext {
  bool is_training = false;  ///< dropout is drawn
  RandomKey key;             ///< seed, optimizer step, micro-batch of the global batch
  /// Seeds of K networks that run together, whose states are [K, ...]: each draws its own dropout. Empty: key's alone.
  std::vector<std::uint64_t> seeds = {};
  AttentionCache* cache = nullptr;  ///< generation: attention reads it and goes on from there
};

/// Places inside a layer that draw dropout. Part of the random key: never renumber, add at the end.
enum class DropoutSite : std::uint32_t {
  kEmbedding = 1,
  kAttentionWeights = 2,
  kAttentionOutput = 3,
  kFeedForwardInner = 4,
  kFeedForwardOutput = 5,
  kCrossAttentionWeights = 6,
  kCrossAttentionOutput = 7,
  kPooled = 8,
  kClassifier = 9,
  kFactor = 10,
  kSideInput = 11,
  kSideOutput = 12,
  kFinal = 13,
  kAttentionPath = 27,  // of whole branches
  kCrossAttentionPath = 28,
  kFeedForwardPath = 29,
  kReversibleAdapter = 32,  // behind every kFactor + linear
  kFeedForwardAdapter = 33,
  kAttentionAdapter = 34,
};

/// Where dropout is drawn: a domain (backbone, side network, ...) and the canonical index of the layer in the whole
/// chain.
struct LayerPlace {
  RandomDomain domain = RandomDomain::kBackbone;
  std::uint64_t layer_index = 0;
};

inline std::uint64_t dropout_key(const ForwardContext& context, const LayerPlace& place, DropoutSite site) {
  return derive_key(context.key, place.domain, place.layer_index, static_cast<std::uint64_t>(site));
}

/// The keys of the networks that run together; one where it is one.
inline std::vector<std::uint64_t> dropout_keys(const ForwardContext& context, const LayerPlace& place,
                                               DropoutSite site) {
  if (context.seeds.empty()) return {dropout_key(context, place, site)};
  std::vector<std::uint64_t> keys;
  for (const std::uint64_t seed : context.seeds) {
    RandomKey key = context.key;
    key.seed = seed;
    keys.push_back(derive_key(key, place.domain, place.layer_index, static_cast<std::uint64_t>(site)));
  }
  return keys;
}

}  // namespace espalier::model
