// SPDX-License-Identifier: Apache-2.0
// CUDA tensors over NCCL. Control values stay on a host communicator, which also carries the unique ids and the
// barrier.
#pragma once

#include <c10/core/Device.h>

#include <memory>

#include "dist/communicator.h"

namespace espalier::dist {

/// A communicator of the ranks of `host` for tensors on `device`; all_reduce sums float16 and bfloat16 too. Each
/// direction and channel between two ranks has a lane of its own (an NCCL communicator of two ranks, made at the first
/// message, which blocks the host of either side until the other one comes), so sends and receives overlap whatever
/// order they are started in. Collective: every rank of `host`. Stream: an operation runs on a stream of its own, after
/// what the caller's current stream holds; Work::wait orders the current stream after it and never blocks the host.
/// Owns: a group of its own that is split from `host`; `host` may end before. Throws: ConfigError in a build without
/// CUDA; CommError naming the NCCL call, the world rank and the device.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host, at::Device device);

}  // namespace espalier::dist
