// SPDX-License-Identifier: Apache-2.0
// Which random word decides on which element: shared by the CPU loops, the attention kernel and CUDA, and never to be
// changed, because checkpoints promise that a resumed run draws the same masks.
//
// Elements go in blocks of 256. Block b uses the 64 Philox 4x32-10 counters 64 b ... 64 b + 63 under the dropout key
// (counter words 2 and 3 are 0). Element 256 b + 64 w + j takes word w of counter 64 b + j: the four words of
// neighbouring counters are four arrays of 64, so that a vector of counters yields runs of neighbouring elements
// without a transpose, and a GPU warp writes coalesced. An element is kept if its word >= floor(probability * 2^32),
// and is then multiplied by float(1 / (1 - probability)).
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define ESPALIER_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ESPALIER_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace espalier::model {

constexpr std::int64_t kDropoutCounters = 64;                 ///< per block
constexpr std::int64_t kDropoutBlock = 4 * kDropoutCounters;  ///< elements per block

struct DropoutRule {
  std::uint64_t key = 0;
  std::uint32_t threshold = 0;  ///< kept if word >= threshold
  float scale = 1;              ///< of the kept
};

inline DropoutRule make_dropout_rule(double probability, std::uint64_t key) {
  return {key, static_cast<std::uint32_t>(probability * 0x1p32), static_cast<float>(1.0 / (1.0 - probability))};
}

struct DropoutWords {
  std::uint32_t word[4];
};

/// Philox 4x32-10 of the counter {counter, 0}: the same numbers as philox4x32 of common/random.h, inlined so that loops
/// vectorise.
ESPALIER_HOST_DEVICE DropoutWords draw_dropout_words(std::uint64_t key, std::uint64_t counter) {
  std::uint32_t key0 = static_cast<std::uint32_t>(key), key1 = static_cast<std::uint32_t>(key >> 32);
  std::uint32_t word0 = static_cast<std::uint32_t>(counter), word1 = static_cast<std::uint32_t>(counter >> 32);
  std::uint32_t word2 = 0, word3 = 0;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * word0;
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * word2;
    word0 = static_cast<std::uint32_t>(product1 >> 32) ^ word1 ^ key0;
    word1 = static_cast<std::uint32_t>(product1);
    word2 = static_cast<std::uint32_t>(product0 >> 32) ^ word3 ^ key1;
    word3 = static_cast<std::uint32_t>(product0);
    key0 += 0x9E3779B9U;
    key1 += 0xBB67AE85U;
  }
  return {{word0, word1, word2, word3}};
}

#ifndef __CUDACC__
// One compilation per instruction set, chosen when the program is loaded: the binary runs on any x86-64.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ESPALIER_TARGET_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define ESPALIER_TARGET_CLONES
#endif

/// keep[256 * i + e] = all ones if element 256 * (first_block + i) + e is kept, else 0, for `num_blocks` blocks.
void draw_dropout_blocks(const DropoutRule& rule, std::int64_t first_block, std::int64_t num_blocks,
                         std::uint32_t* keep);
#endif

}  // namespace espalier::model
