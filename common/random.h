// SPDX-License-Identifier: Apache-2.0
// Randomness by key: every random number is a pure function of (seed, step, micro-batch, place in the model, element),
// so that neither the layout nor the thread count nor an interruption changes it, and no generator state is ever saved.
// Philox 4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace espalier {

/// Which family of random draws a place belongs to. Part of the key: never renumber, add at the end.
enum class RandomDomain : std::uint32_t {
  kBackbone = 1,  ///< dropout of the backbone
  kSide = 2,      ///< dropout of a side network
  kAdapter = 3,   ///< dropout inside adapters and factors
  kHead = 4,      ///< dropout of the task head
  kInitial = 5,   ///< initial values of trained tensors
  kSampler = 6,   ///< order of the training samples
  kSubspace = 7,  ///< random subspaces (ROSA)
};

/// Where the run stands. `micro_batch` counts within the global batch of `step`, never within a rank.
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint64_t step = 0;
  std::uint64_t micro_batch = 0;
};

/// Mixes the parts into one 64-bit Philox key (a chain of splitmix64 finalisers; order matters).
std::uint64_t derive_key(const RandomKey& key, RandomDomain domain, std::uint64_t layer, std::uint64_t site);

/// Key of a named tensor, for initial values: the name is canonical, so every layout draws the same.
std::uint64_t derive_key(std::uint64_t seed, RandomDomain domain, std::string_view name);

/// Philox 4x32-10 of one 128-bit counter (low word first) under `key`.
std::array<std::uint32_t, 4> philox4x32(std::uint64_t key, std::array<std::uint32_t, 4> counter);
/// The same of the counter {low word, high word, 0, 0}.
std::array<std::uint32_t, 4> philox4x32(std::uint64_t key, std::uint64_t counter);

/// A sequence of numbers under one key, for host-side decisions (permutations, initial values). Not a global generator.
/// Thread: not shared.
class PhiloxSequence {
 public:
  explicit PhiloxSequence(std::uint64_t key) : key_(key) {}
  std::uint32_t next_u32();
  std::uint64_t next_u64();
  /// Uniform on [0, bound), without modulo bias. Requires: bound > 0.
  std::uint64_t next_below(std::uint64_t bound);

 private:
  std::uint64_t key_;
  std::uint64_t counter_ = 0;
  std::array<std::uint32_t, 4> block_{};
  int used_ = 4;
};

}  // namespace espalier
