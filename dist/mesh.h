// SPDX-License-Identifier: Apache-2.0
// Which rank is which: a pure function of (ranks, stages). Ranks of one replica are neighbours, so that activations
// stay on a node.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dist/communicator.h"

namespace espalier::dist {

/// Place of one rank: world_rank = replica_index * num_stages + stage_index.
struct MeshPlace {
  int num_stages = 1;
  int num_replicas = 1;
  int stage_index = 0;
  int replica_index = 0;
  [[nodiscard]] bool is_first_stage() const { return stage_index == 0; }
  [[nodiscard]] bool is_last_stage() const { return stage_index == num_stages - 1; }
  [[nodiscard]] int world_rank_of(int stage, int replica) const { return replica * num_stages + stage; }
};

/// num_replicas = 0 means num_ranks / num_stages.
/// Throws: ConfigError, agreed, listing every layout that would fit when num_stages x num_replicas is not num_ranks.
MeshPlace plan_mesh(int world_rank, int num_ranks, int num_stages, int num_replicas);

/// The communicators of one rank. `control` carries host values only and is never NCCL.
struct Mesh {
  MeshPlace place;
  Communicator* control = nullptr;         ///< every rank; host tensors
  std::unique_ptr<Communicator> pipeline;  ///< the stages of this replica; rank = stage_index; tensors on the device
  std::unique_ptr<Communicator> replicas;  ///< the replicas of this stage; rank = replica_index; tensors on the device
  std::unique_ptr<Communicator> stage_control;  ///< as `pipeline`, host tensors
};

/// `device`: the communicator for device tensors over all ranks (NCCL), or null to use `control` for both.
/// Collective: every rank of `control`. Owns: not `control`, which outlives the mesh. Throws: as plan_mesh().
Mesh make_mesh(Communicator& control, Communicator* device, int num_stages, int num_replicas);

/// The micro-batches of a global batch that one replica works on: contiguous, in order, sizes differ by at most one.
struct MicroBatchRange {
  int first = 0;
  int end = 0;
  [[nodiscard]] int size() const { return end - first; }
};
MicroBatchRange plan_micro_batches(int num_micro_batches, int num_replicas, int replica_index);

}  // namespace espalier::dist
