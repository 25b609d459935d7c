// SPDX-License-Identifier: Apache-2.0
// Counts bytes by kind (what memory holds) and by collective (what moved), so that claims about memory and traffic are
// exact numbers that tests assert.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

namespace espalier {

/// Bytes that live in memory, by what they are for.
enum class MemoryKind {
  kFrozen,  ///< as the model folder has it
  kTrained,
  kGradient,
  kOptimizer,
  kKept,  ///< neither trained nor as stored: rests of weights that a method split
  kNumKinds
};
std::string_view to_string(MemoryKind kind);

/// One ledger per rank, owned by whoever owns the rank (launch/, a test) and passed down by reference.
/// Thread: safe.
class ByteLedger {
 public:
  /// Sets what `kind` holds now (kinds are measured, not counted call by call).
  void set_memory(MemoryKind kind, std::int64_t bytes);
  [[nodiscard]] std::int64_t memory(MemoryKind kind) const;

  /// Adds payload bytes that this rank gave into `operation` ("all_reduce", "send", ...), labelled by what they carry
  /// ("gradient", "activation", "control", ...).
  void add_traffic(std::string_view operation, std::string_view label, std::int64_t bytes);
  [[nodiscard]] std::int64_t traffic(std::string_view operation, std::string_view label) const;
  /// All counters, keyed "operation/label".
  [[nodiscard]] std::map<std::string, std::int64_t> traffic() const;

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::int64_t> traffic_;
  std::array<std::atomic<std::int64_t>, static_cast<std::size_t>(MemoryKind::kNumKinds)> memory_{};
};

}  // namespace espalier
