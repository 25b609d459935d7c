// SPDX-License-Identifier: Apache-2.0
#include "common/byte_ledger.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>
#include <vector>

#include "common/error.h"

namespace espalier {
namespace {

TEST(ByteLedger, KeepsEachKindOfMemoryApart) {
  ByteLedger ledger;
  ledger.set_memory(MemoryKind::kFrozen, 1000);
  ledger.set_memory(MemoryKind::kGradient, 7);
  ledger.set_memory(MemoryKind::kFrozen, 900);
  EXPECT_EQ(ledger.memory(MemoryKind::kFrozen), 900);
  EXPECT_EQ(ledger.memory(MemoryKind::kGradient), 7);
  EXPECT_EQ(ledger.memory(MemoryKind::kTrained), 0);
}

TEST(ByteLedger, NamesEveryKindDifferently) {
  std::set<std::string_view> names;
  for (int kind = 0; kind < static_cast<int>(MemoryKind::kNumKinds); ++kind) {
    names.insert(to_string(static_cast<MemoryKind>(kind)));
  }
  EXPECT_EQ(names.size(), static_cast<std::size_t>(MemoryKind::kNumKinds));
  EXPECT_THROW(to_string(MemoryKind::kNumKinds), InternalError);
}

TEST(ByteLedger, AddsTrafficByOperationAndLabel) {
  ByteLedger ledger;
  ledger.add_traffic("all_reduce", "gradient", 40);
  ledger.add_traffic("all_reduce", "gradient", 2);
  ledger.add_traffic("send", "activation", 5);
  EXPECT_EQ(ledger.traffic("all_reduce", "gradient"), 42);
  EXPECT_EQ(ledger.traffic("all_reduce", "activation"), 0);
  EXPECT_EQ(ledger.traffic(),
            (std::map<std::string, std::int64_t>{{"all_reduce/gradient", 42}, {"send/activation", 5}}));
}

TEST(ByteLedger, RefusesNegativeBytes) {
  ByteLedger ledger;
  EXPECT_THROW(ledger.add_traffic("send", "activation", -1), InternalError);
  EXPECT_THROW(ledger.set_memory(MemoryKind::kGradient, -1), InternalError);
}

TEST(ByteLedger, LosesNothingBetweenThreads) {
  ByteLedger ledger;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&ledger] {
      for (int j = 0; j < 1000; ++j) {
        ledger.add_traffic("send", "activation", 3);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(ledger.traffic("send", "activation"), 12000);
}

}  // namespace
}  // namespace espalier
