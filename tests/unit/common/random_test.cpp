// SPDX-License-Identifier: Apache-2.0
#include "common/random.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "common/error.h"

namespace espalier {
namespace {

using Words = std::array<std::uint32_t, 4>;

TEST(Philox, GivesTheKnownAnswersOfRandom123) {
  // kat_vectors of Random123, "philox4x32 10": counter, key (low word first) and answer.
  EXPECT_EQ(philox4x32(0, Words{}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32(~std::uint64_t{0}, Words{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32(0x299f31d0a4093822, Words{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, TakesA64BitCounterAsItsTwoLowWords) {
  EXPECT_EQ(philox4x32(7, 0x0123456789abcdef), philox4x32(7, Words{0x89abcdef, 0x01234567, 0, 0}));
}

TEST(DeriveKey, EveryPartAndTheirOrderMatter) {
  std::set<std::uint64_t> keys;
  std::size_t num_draws = 0;
  for (std::uint64_t seed : {0, 1, 2}) {
    for (std::uint64_t step : {0, 1, 2}) {
      for (std::uint64_t micro_batch : {0, 1, 2}) {
        for (std::uint64_t layer : {0, 1, 2}) {
          for (std::uint64_t site : {0, 1, 2}) {
            keys.insert(derive_key({seed, step, micro_batch}, RandomDomain::kBackbone, layer, site));
            keys.insert(derive_key({seed, step, micro_batch}, RandomDomain::kSide, layer, site));
            num_draws += 2;
          }
        }
      }
    }
  }
  EXPECT_EQ(keys.size(), num_draws);
}

TEST(DeriveKey, OfANameDependsOnEveryLetterAndOnTheLength) {
  const auto key = [](std::string_view name) { return derive_key(1, RandomDomain::kInitial, name); };
  std::set<std::uint64_t> keys{key(""),
                               key("a"),
                               key(std::string_view("a\0", 2)),
                               key("layer.10"),
                               key("layer.01"),
                               key("layer.10.weight"),
                               key("layer.10.weighs"),
                               key("weight.10.layer")};
  EXPECT_EQ(keys.size(), 8u);
  EXPECT_NE(key("a"), derive_key(2, RandomDomain::kInitial, "a"));
  EXPECT_NE(key("a"), derive_key(1, RandomDomain::kSubspace, "a"));
}

TEST(DeriveKey, NeverChangesBetweenVersions) {
  // Checkpoints resume under these keys. A change here breaks the promise that a resumed run equals an uninterrupted
  // one.
  EXPECT_EQ(derive_key({17, 3, 2}, RandomDomain::kBackbone, 5, 1), 0xab2c48db57d48e58U);
  EXPECT_EQ(derive_key(17, RandomDomain::kInitial, "classifier.weight"), 0xe2fbbea98fff7a0eU);
}

TEST(PhiloxSequence, WalksThroughTheBlocksOfItsKey) {
  PhiloxSequence sequence(99);
  for (std::uint64_t counter = 0; counter < 3; ++counter) {
    for (const std::uint32_t word : philox4x32(99, counter)) {
      EXPECT_EQ(sequence.next_u32(), word);
    }
  }
}

TEST(PhiloxSequence, DrawsBelowABoundWithoutBias) {
  PhiloxSequence sequence(1);
  std::vector<int> counts(7);
  for (int i = 0; i < 70'000; ++i) {
    ++counts.at(sequence.next_below(7));
  }
  for (const int count : counts) {
    EXPECT_NEAR(count, 10'000, 400);  // over four standard deviations
  }
  // A third of all 64-bit values must be drawn again here; a plain remainder would give the low half twice as often.
  const std::uint64_t bound = (std::uint64_t{1} << 63) + (std::uint64_t{1} << 62);
  int low_half = 0;
  for (int i = 0; i < 10'000; ++i) {
    low_half += sequence.next_below(bound) < bound / 2;
  }
  EXPECT_NEAR(low_half, 5'000, 250);
  EXPECT_EQ(sequence.next_below(1), 0u);
  EXPECT_THROW(sequence.next_below(0), InternalError);
}

}  // namespace
}  // namespace espalier
