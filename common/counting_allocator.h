// SPDX-License-Identifier: Apache-2.0
// Makes every CPU tensor allocation count, so that `peak_allocated_bytes` means on a CPU what it means on CUDA.
#pragma once

#include <cstdint>

namespace espalier {

/// Live bytes of CPU tensors, and their peak since the last reset. Tensors count from install_counting_allocator() on.
struct AllocatedBytes {
  std::int64_t current = 0;
  std::int64_t peak = 0;
};

/// Puts a counting allocator under every later CPU tensor of this process. Call it once, first thing in main().
void install_counting_allocator();

/// Thread: safe.
AllocatedBytes allocated_bytes();
/// Peak becomes what is live now.
void reset_peak_allocated_bytes();
/// Adds bytes that tensors use without having allocated them (weights mapped from a file); negative when they go.
/// A frozen weight costs the same whether it was read or mapped, so the peak must contain it.
void add_external_bytes(std::int64_t bytes);

}  // namespace espalier
