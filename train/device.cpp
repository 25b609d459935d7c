// SPDX-License-Identifier: Apache-2.0
#include "train/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <sched.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <algorithm>

#include "common/counting_allocator.h"
#include "common/error.h"
#include "common/log.h"

namespace espalier::train {

at::Device device_from(const std::string& name, int node_rank) {
  if (name == "cpu") {
    return at::kCPU;
  }
  const auto& context = at::globalContext();
  if (!context.hasCUDA()) {
    throw ConfigError(
        "model.device: expected a CUDA device for 'cuda', found none (no driver, or a build without CUDA); use "
        "--model.device=cpu");
  }
  const auto num_devices = std::max<std::size_t>(1, at::getNumGPUs());
  return {at::kCUDA, static_cast<c10::DeviceIndex>(static_cast<std::size_t>(node_rank) % num_devices)};
}

at::ScalarType compute_type_from(const std::string& name) {
  if (name == "fp32") {
    return at::kFloat;
  }
  if (name == "bf16") {
    return at::kBFloat16;
  }
  if (name == "fp16") {
    return at::kHalf;
  }
  throw ConfigError(fmt::format("model.compute_type: expected fp32, bf16 or fp16, found '{}'", name));
}

NodeCores count_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  return {sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 1,
          static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN))};
}

int default_threads(const NodeCores& cores, int ranks_on_node) {
  const int threads = std::max(1, cores.allowed / std::max(1, ranks_on_node));
  if (ranks_on_node > 1 && cores.allowed < cores.online) {
    log_warning("train",
                "this rank may use {} of the node's {} cores, which divided by its {} ranks gives {} thread(s); if the "
                "launcher bound each rank to cores of its own, they are divided twice: source "
                "scripts/mpi_environment.sh, start with mpirun --bind-to none, or set parallel.threads",
                cores.allowed, cores.online, ranks_on_node, threads);
  }
  return threads;
}

void configure_threads(int threads) {
  // Before the first parallel loop: worker threads inherit the floating-point mode of the thread that starts them.
  at::globalContext().setFlushDenormal(true);
  at::set_num_threads(threads);
}

std::int64_t peak_allocated_bytes(const at::Device& device) {
  if (device.is_cpu()) {
    return allocated_bytes().peak;
  }
  const auto stats = at::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
}

void reset_peak_bytes(const at::Device& device) {
  if (device.is_cpu()) {
    reset_peak_allocated_bytes();
  } else {
    at::getDeviceAllocator(device.type())->resetPeakStats(device.index());
  }
}

}  // namespace espalier::train
