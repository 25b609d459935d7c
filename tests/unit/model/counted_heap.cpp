// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/model/counted_heap.h"

#include <malloc.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace {

thread_local std::int64_t live_bytes = 0;
thread_local std::int64_t peak_bytes = 0;

}  // namespace

void* operator new(std::size_t bytes) {
  void* memory = std::malloc(std::max<std::size_t>(bytes, 1));
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  live_bytes += static_cast<std::int64_t>(malloc_usable_size(memory));
  peak_bytes = std::max(peak_bytes, live_bytes);
  return memory;
}

void operator delete(void* memory) noexcept {
  if (memory != nullptr) {
    live_bytes -= static_cast<std::int64_t>(malloc_usable_size(memory));
    std::free(memory);
  }
}

void operator delete(void* memory, std::size_t /*bytes*/) noexcept {
  operator delete(memory);
}

namespace espalier::test {

HeapPeak::HeapPeak() : live_before_(live_bytes) {
  peak_bytes = live_bytes;
}

std::int64_t HeapPeak::bytes() const {
  return peak_bytes - live_before_;
}

}  // namespace espalier::test
