// SPDX-License-Identifier: Apache-2.0
#include "common/byte_ledger.h"

#include "common/check.h"

namespace espalier {
namespace {

std::string traffic_key(std::string_view operation, std::string_view label) {
  return fmt::format("{}/{}", operation, label);
}

}  // namespace

std::string_view to_string(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::kFrozen:
      return "frozen";
    case MemoryKind::kTrained:
      return "trained";
    case MemoryKind::kGradient:
      return "gradient";
    case MemoryKind::kOptimizer:
      return "optimizer";
    case MemoryKind::kKept:
      return "kept";
    case MemoryKind::kNumKinds:
      break;
  }
  ESPALIER_CHECK(false, "{} is no kind of memory", static_cast<int>(kind));
  return {};
}

void ByteLedger::set_memory(MemoryKind kind, std::int64_t bytes) {
  ESPALIER_CHECK(bytes >= 0, "{} holds {} bytes", to_string(kind), bytes);
  memory_.at(static_cast<std::size_t>(kind)) = bytes;
}

std::int64_t ByteLedger::memory(MemoryKind kind) const {
  return memory_.at(static_cast<std::size_t>(kind));
}

void ByteLedger::add_traffic(std::string_view operation, std::string_view label, std::int64_t bytes) {
  ESPALIER_CHECK(bytes >= 0, "{}/{} moved {} bytes", operation, label, bytes);
  const std::scoped_lock lock(mutex_);
  traffic_[traffic_key(operation, label)] += bytes;
}

std::int64_t ByteLedger::traffic(std::string_view operation, std::string_view label) const {
  const std::scoped_lock lock(mutex_);
  const auto found = traffic_.find(traffic_key(operation, label));
  return found == traffic_.end() ? 0 : found->second;
}

std::map<std::string, std::int64_t> ByteLedger::traffic() const {
  const std::scoped_lock lock(mutex_);
  return traffic_;
}

}  // namespace espalier
