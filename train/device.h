// SPDX-License-Identifier: Apache-2.0
// Devices, types and threads as options name them, and what memory they use.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace espalier::train {

/// "cpu", or "cuda" with this rank's index on its node, counted around where there are fewer devices than ranks.
/// Throws: ConfigError when there is no such device.
at::Device device_from(const std::string& name, int node_rank);
/// fp32, bf16, fp16. Throws: ConfigError for another name.
at::ScalarType compute_type_from(const std::string& name);

struct NodeCores {
  int allowed = 1;  ///< to this process
  int online = 1;
};
NodeCores count_cores();
/// The cores that this process may use, divided by the ranks on its node; at least 1. Warns where a launcher seems to
/// have divided them already.
int default_threads(const NodeCores& cores, int ranks_on_node);
/// Sets the threads of every parallel loop and flushes denormals (they make the softmax backward 4-9 times slower).
/// Requires: no parallel loop ran before, since its threads would not flush.
void configure_threads(int threads);

/// Most bytes of tensors that were alive at one time: by the counting allocator on the CPU, by the device's own
/// allocator elsewhere.
std::int64_t peak_allocated_bytes(const at::Device& device);
void reset_peak_bytes(const at::Device& device);

}  // namespace espalier::train
