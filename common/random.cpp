// SPDX-License-Identifier: Apache-2.0
#include "common/random.h"

#include "common/check.h"

namespace espalier {
namespace {

// The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection in which every input bit moves half of the
// output bits.
constexpr std::uint64_t finalise(std::uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
  return value ^ (value >> 31);
}

// The odd increment keeps a chain of zeros from staying zero.
constexpr std::uint64_t mix(std::uint64_t state, std::uint64_t part) {
  return finalise((state ^ part) + 0x9E3779B97F4A7C15ULL);
}

}  // namespace

std::uint64_t derive_key(const RandomKey& key, RandomDomain domain, std::uint64_t layer, std::uint64_t site) {
  std::uint64_t state = mix(0, key.seed);
  state = mix(state, key.step);
  state = mix(state, key.micro_batch);
  state = mix(state, static_cast<std::uint64_t>(domain));
  state = mix(state, layer);
  return mix(state, site);
}

std::uint64_t derive_key(std::uint64_t seed, RandomDomain domain, std::string_view name) {
  // Eight bytes at a time, little end first on every machine; the length tells "a" from "a\0".
  std::uint64_t state = mix(mix(0, seed), static_cast<std::uint64_t>(domain));
  state = mix(state, name.size());
  for (std::size_t begin = 0; begin < name.size(); begin += 8) {
    std::uint64_t part = 0;
    for (std::size_t i = begin; i < name.size() && i < begin + 8; ++i) {
      part |= static_cast<std::uint64_t>(static_cast<unsigned char>(name[i])) << (8 * (i - begin));
    }
    state = mix(state, part);
  }
  return state;
}

std::array<std::uint32_t, 4> philox4x32(std::uint64_t key, std::array<std::uint32_t, 4> counter) {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  auto key0 = static_cast<std::uint32_t>(key), key1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = kMultiplier0 * counter[0];
    const std::uint64_t product1 = kMultiplier1 * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(product0)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

std::array<std::uint32_t, 4> philox4x32(std::uint64_t key, std::uint64_t counter) {
  return philox4x32(key, std::array{static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32),
                                    std::uint32_t{0}, std::uint32_t{0}});
}

std::uint32_t PhiloxSequence::next_u32() {
  if (used_ == 4) {
    block_ = philox4x32(key_, counter_++);
    used_ = 0;
  }
  return block_[static_cast<std::size_t>(used_++)];
}

std::uint64_t PhiloxSequence::next_u64() {
  const std::uint64_t low = next_u32();
  return low | (static_cast<std::uint64_t>(next_u32()) << 32);
}

std::uint64_t PhiloxSequence::next_below(std::uint64_t bound) {
  ESPALIER_CHECK(bound > 0);
  // The 2^64 mod bound lowest values are drawn again: what remains divides evenly among the results.
  const std::uint64_t excess = (0 - bound) % bound;
  std::uint64_t value = next_u64();
  while (value < excess) {
    value = next_u64();
  }
  return value % bound;
}

}  // namespace espalier
