// SPDX-License-Identifier: Apache-2.0
#include "common/counting_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <atomic>
#include <cstddef>
#include <cstring>

namespace espalier {
namespace {

// Process-wide, as the allocator of LibTorch is.
std::atomic<std::int64_t> current_bytes{0};
std::atomic<std::int64_t> peak_bytes{0};

void count(std::int64_t bytes) {
  const std::int64_t now = current_bytes.fetch_add(bytes) + bytes;
  std::int64_t peak = peak_bytes.load();
  while (now > peak && !peak_bytes.compare_exchange_weak(peak, now)) {
  }
}

// The size stands before the block, since a deleter is told the address only. One cache line: the block stays as
// aligned as LibTorch's own (64 bytes), which its vector kernels count on.
constexpr std::size_t kHeaderBytes = 64;
static_assert(kHeaderBytes >= c10::gAlignment && kHeaderBytes % c10::gAlignment == 0);

void release(void* data) {
  if (data == nullptr) {
    return;
  }
  void* block = static_cast<std::byte*>(data) - kHeaderBytes;
  std::int64_t bytes = 0;
  std::memcpy(&bytes, block, sizeof(bytes));
  count(-bytes);
  c10::free_cpu(block);
}

class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) {
      return {nullptr, nullptr, &release, c10::Device(c10::DeviceType::CPU)};
    }
    void* block = c10::alloc_cpu(bytes + kHeaderBytes);
    const auto counted = static_cast<std::int64_t>(bytes);
    std::memcpy(block, &counted, sizeof(counted));
    count(counted);
    void* data = static_cast<std::byte*>(block) + kHeaderBytes;
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* destination, const void* source, std::size_t bytes) const override {
    default_copy_data(destination, source, bytes);
  }
};

}  // namespace

void install_counting_allocator() {
  // Never destroyed: tensors may outlive every scope of main().
  static auto* allocator = new CountingAllocator;
  // LibTorch takes a replacement only from a priority that is not lower than the one in place.
  c10::SetCPUAllocator(allocator, /*priority=*/1);
}

AllocatedBytes allocated_bytes() {
  return {current_bytes.load(), peak_bytes.load()};
}

void reset_peak_allocated_bytes() {
  peak_bytes.store(current_bytes.load());
}

void add_external_bytes(std::int64_t bytes) {
  count(bytes);
}

}  // namespace espalier
