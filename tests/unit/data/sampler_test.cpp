// SPDX-License-Identifier: Apache-2.0
// The sampler's laws: every row once an epoch, batches that depend on (seed, step) alone, and grouping that saves
// padding.
#include "data/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <thread>

#include "common/error.h"

namespace espalier::data {
namespace {

using Rows = std::vector<std::int64_t>;

DataConfig config_of(std::int64_t global_batch_size, std::int64_t micro_batch_size = 0, bool group_by_length = false) {
  DataConfig config;
  config.global_batch_size = global_batch_size;
  config.micro_batch_size = micro_batch_size;
  config.group_by_length = group_by_length;
  return config;
}

// Lengths without order, between 3 and 63.
std::int64_t length_of(std::int64_t row) {
  return 3 + row * 7919 % 61;
}

Rows flat(const GlobalBatch& batch) {
  Rows rows;
  for (const Rows& micro_batch : batch.micro_batches) {
    EXPECT_FALSE(micro_batch.empty());
    rows.insert(rows.end(), micro_batch.begin(), micro_batch.end());
  }
  return rows;
}

Rows epoch_rows(const Sampler& sampler, std::int64_t epoch) {
  Rows rows;
  for (std::int64_t step = 0; step < sampler.steps_per_epoch(); ++step) {
    const GlobalBatch batch = sampler.batch(epoch * sampler.steps_per_epoch() + step);
    EXPECT_EQ(batch.epoch, epoch);
    const Rows piece = flat(batch);
    EXPECT_EQ(static_cast<std::int64_t>(piece.size()), batch.num_rows);
    rows.insert(rows.end(), piece.begin(), piece.end());
  }
  return rows;
}

Rows all_rows(std::int64_t num_rows) {
  Rows rows(static_cast<std::size_t>(num_rows));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

std::int64_t padded_tokens(const Sampler& sampler) {
  std::int64_t tokens = 0;
  for (std::int64_t step = 0; step < sampler.steps_per_epoch(); ++step) {
    for (const Rows& micro_batch : sampler.batch(step).micro_batches) {
      std::int64_t longest = 0;
      for (const std::int64_t row : micro_batch) {
        longest = std::max(longest, length_of(row));
      }
      tokens += longest * static_cast<std::int64_t>(micro_batch.size());
    }
  }
  return tokens;
}

TEST(Sampler, ShowsEveryRowExactlyOnceAnEpoch) {
  for (const bool group_by_length : {false, true}) {
    for (const std::int64_t num_rows : {1, 7, 8, 9, 100, 4001}) {
      const Sampler sampler(num_rows, 5, config_of(8, 3, group_by_length), length_of);
      EXPECT_EQ(sampler.steps_per_epoch(), (num_rows + 7) / 8);
      for (const std::int64_t epoch : {0, 1, 6}) {
        Rows rows = epoch_rows(sampler, epoch);
        std::sort(rows.begin(), rows.end());
        EXPECT_EQ(rows, all_rows(num_rows)) << "group_by_length " << group_by_length;
      }
    }
  }
}

TEST(Sampler, OnlyTheLastBatchOfAnEpochIsShort) {
  const Sampler sampler(21, 0, config_of(8, 3, true), length_of);
  for (std::int64_t step = 0; step < 9; ++step) {
    const GlobalBatch batch = sampler.batch(step);
    EXPECT_EQ(batch.num_rows, step % 3 == 2 ? 5 : 8);
    std::vector<std::size_t> sizes;
    for (const Rows& micro_batch : batch.micro_batches) {
      sizes.push_back(micro_batch.size());
    }
    EXPECT_EQ(sizes, (step % 3 == 2 ? std::vector<std::size_t>{3, 2} : std::vector<std::size_t>{3, 3, 2}));
  }
}

TEST(Sampler, GivesTheSameBatchInAnyOrderOfCallsAndFromACopyAndAfterAResume) {
  for (const bool group_by_length : {false, true}) {
    const DataConfig config = config_of(16, 4, group_by_length);
    const Sampler sampler(500, 11, config, length_of);
    std::vector<Rows> forward;
    for (std::int64_t step = 0; step < 100; ++step) {
      forward.push_back(flat(sampler.batch(step)));
    }
    const Sampler copy = sampler;
    for (std::int64_t step = 99; step >= 0; step -= 3) {
      EXPECT_EQ(flat(copy.batch(step)), forward[step]);
      EXPECT_EQ(flat(Sampler(500, 11, config, length_of).batch(step)), forward[step]);
    }
  }
}

TEST(Sampler, GivesThreadsWhatItGivesOne) {
  const Sampler sampler(997, 3, config_of(10), nullptr);
  std::vector<Rows> expected;
  for (std::int64_t step = 0; step < 400; ++step) {
    expected.push_back(flat(Sampler(sampler).batch(step)));
  }
  std::vector<std::vector<Rows>> found(3);
  std::vector<std::thread> threads;
  for (std::size_t index = 0; index < found.size(); ++index) {
    threads.emplace_back([&, index] {
      for (std::int64_t step = 0; step < 400; ++step) {
        found[index].push_back(flat(sampler.batch((step * 101 + static_cast<std::int64_t>(index) * 133) % 400)));
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (std::size_t index = 0; index < found.size(); ++index) {
    for (std::size_t step = 0; step < 400; ++step) {
      EXPECT_EQ(found[index][step], expected[(step * 101 + index * 133) % 400]);
    }
  }
}

TEST(Sampler, DrawsAnotherOrderForEveryEpochAndSeed) {
  for (const bool group_by_length : {false, true}) {
    const Sampler sampler(300, 1, config_of(16, 0, group_by_length), length_of);
    const Sampler other_seed(300, 2, config_of(16, 0, group_by_length), length_of);
    EXPECT_NE(epoch_rows(sampler, 0), epoch_rows(sampler, 1));
    EXPECT_NE(epoch_rows(sampler, 1), epoch_rows(sampler, 2));
    EXPECT_NE(epoch_rows(sampler, 0), epoch_rows(other_seed, 0));
    EXPECT_NE(epoch_rows(sampler, 0), all_rows(300));
  }
}

TEST(Sampler, PutsEveryRowAtEveryPlaceEquallyOften) {
  // 3 rows, 6,000 epochs: each of the 6 orders is expected 1,000 times, with a standard deviation of 29.
  const Sampler sampler(3, 0, config_of(3), nullptr);
  std::map<Rows, int> counts;
  for (std::int64_t epoch = 0; epoch < 6000; ++epoch) {
    ++counts[epoch_rows(sampler, epoch)];
  }
  ASSERT_EQ(counts.size(), 6u);
  for (const auto& [order, count] : counts) {
    EXPECT_NEAR(count, 1000, 150);
  }
}

TEST(Sampler, GivesTheSameGlobalRowsForAnyMicroBatchSize) {
  for (const bool group_by_length : {false, true}) {
    const Sampler whole(203, 9, config_of(32, 0, group_by_length), length_of);
    for (const std::int64_t micro_batch_size : {1, 3, 8, 31, 32}) {
      const Sampler cut(203, 9, config_of(32, micro_batch_size, group_by_length), length_of);
      for (std::int64_t step = 0; step < 15; ++step) {
        EXPECT_EQ(whole.batch(step).micro_batches.size(), 1u);
        EXPECT_EQ(flat(cut.batch(step)), flat(whole.batch(step)));
      }
    }
  }
}

TEST(Sampler, GroupingByLengthSavesMostOfThePadding) {
  std::int64_t tokens = 0;
  for (std::int64_t row = 0; row < 4000; ++row) {
    tokens += length_of(row);
  }
  const std::int64_t plain = padded_tokens(Sampler(4000, 4, config_of(32, 8), length_of)) - tokens;
  const std::int64_t grouped = padded_tokens(Sampler(4000, 4, config_of(32, 8, true), length_of)) - tokens;
  EXPECT_LT(grouped * 10, plain);
}

TEST(Sampler, GroupingDoesNotShowTheLengthsInOrder) {
  const Sampler sampler(32 * 40, 4, config_of(32, 0, true), length_of);
  std::vector<std::int64_t> first_lengths;
  for (std::int64_t step = 0; step < sampler.steps_per_epoch(); ++step) {
    first_lengths.push_back(length_of(flat(sampler.batch(step)).front()));
  }
  EXPECT_FALSE(std::is_sorted(first_lengths.begin(), first_lengths.end()));
}

TEST(Sampler, KeepsTheOrderOfTheFileWithoutShuffle) {
  DataConfig config = config_of(4);
  config.shuffle = false;
  const Sampler sampler(10, 7, config, nullptr);
  EXPECT_EQ(epoch_rows(sampler, 0), all_rows(10));
  EXPECT_EQ(epoch_rows(sampler, 3), all_rows(10));
}

TEST(Sampler, RefusesSizesThatContradictEachOther) {
  const auto expect_refusal = [](const DataConfig& config, std::int64_t num_rows, const std::string& key) {
    try {
      const Sampler sampler(num_rows, 0, config, length_of);
      ADD_FAILURE() << key << " was accepted";
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(key));
    }
  };
  expect_refusal(config_of(8, 9), 10, "data.micro_batch_size");
  expect_refusal(config_of(8), 0, "data.path");
  DataConfig config = config_of(8);
  config.max_length = 65;
  config.fixed_length = 64;
  expect_refusal(config, 10, "data.fixed_length");
  config = config_of(8, 0, true);
  config.shuffle = false;
  expect_refusal(config, 10, "data.group_by_length");
}

TEST(Sampler, TakesNoSizesThatTheOptionsWouldNot) {
  EXPECT_THROW(Sampler(10, 0, config_of(0), length_of), InternalError);
  EXPECT_THROW(Sampler(10, 0, config_of(8, -1), length_of), InternalError);
}

TEST(SequentialBatches, CoverTheRowsInOrder) {
  EXPECT_EQ(sequential_batches(5, 2), (std::vector<Rows>{{0, 1}, {2, 3}, {4}}));
  EXPECT_EQ(sequential_batches(4, 4), (std::vector<Rows>{{0, 1, 2, 3}}));
  EXPECT_TRUE(sequential_batches(0, 4).empty());
}

TEST(DataOptions, AreReadAndBoundedByTheTable) {
  DataConfig config;
  OptionTable table;
  describe(table, config);
  table.read_text("[data]\npath = reviews.h5\nglobal_batch_size = 12\nmicro_batch_size = 3\ngroup_by_length = true\n",
                  "run.ini");
  EXPECT_EQ(config.path, "reviews.h5");
  EXPECT_EQ(config.global_batch_size, 12);
  EXPECT_EQ(config.micro_batch_size, 3);
  EXPECT_TRUE(config.group_by_length);
  for (const char* text : {"[data]\nglobal_batch_size = 0\n", "[data]\nmicro_batch_size = -1\n",
                           "[data]\nmax_length = -1\n", "[data]\npad_multiple = 0\n", "[data]\nfixed_length = -1\n"}) {
    EXPECT_THROW(table.read_text(text, "run.ini"), ConfigError) << text;
  }
}

}  // namespace
}  // namespace espalier::data
