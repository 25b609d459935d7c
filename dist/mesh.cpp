// SPDX-License-Identifier: Apache-2.0
#include "dist/mesh.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "common/check.h"
#include "common/error.h"
#include "dist/agree.h"

namespace espalier::dist {

MeshPlace plan_mesh(int world_rank, int num_ranks, int num_stages, int num_replicas) {
  ESPALIER_CHECK(num_ranks >= 1 && world_rank >= 0 && world_rank < num_ranks, "rank {} of {}", world_rank, num_ranks);
  const bool is_given = num_replicas != 0;
  if (num_stages >= 1 && !is_given) {
    num_replicas = num_ranks / num_stages;
  }
  if (num_stages < 1 || num_replicas < 1 || std::int64_t{num_stages} * num_replicas != num_ranks) {
    std::vector<std::string> layouts;
    for (int stages = 1; stages <= num_ranks; ++stages) {
      if (num_ranks % stages == 0) {
        layouts.push_back(fmt::format("{}x{}", stages, num_ranks / stages));
      }
    }
    throw_agreed<ConfigError>(fmt::format(
        "parallel.stages x parallel.replicas: expected a product of {}, the number of ranks, found {} x {}; layouts "
        "that fit (stages x replicas): {}",
        num_ranks, num_stages, is_given ? std::to_string(num_replicas) : "automatic", fmt::join(layouts, ", ")));
  }
  return {.num_stages = num_stages,
          .num_replicas = num_replicas,
          .stage_index = world_rank % num_stages,
          .replica_index = world_rank / num_stages};
}

Mesh make_mesh(Communicator& control, Communicator* device, int num_stages, int num_replicas) {
  Mesh mesh;
  mesh.place = plan_mesh(control.rank(), control.num_ranks(), num_stages, num_replicas);
  mesh.control = &control;
  Communicator& tensors = device != nullptr ? *device : control;
  mesh.pipeline = tensors.split(mesh.place.replica_index, mesh.place.stage_index);
  mesh.pipeline->set_traffic_label("activation");
  mesh.replicas = tensors.split(mesh.place.stage_index, mesh.place.replica_index);
  mesh.replicas->set_traffic_label("gradient");
  mesh.stage_control = control.split(mesh.place.replica_index, mesh.place.stage_index);
  return mesh;
}

MicroBatchRange plan_micro_batches(int num_micro_batches, int num_replicas, int replica_index) {
  ESPALIER_CHECK(num_micro_batches >= 0 && replica_index >= 0 && replica_index < num_replicas,
                 "{} micro-batches, replica {} of {}", num_micro_batches, replica_index, num_replicas);
  const int share = num_micro_batches / num_replicas;
  const int num_longer = num_micro_batches % num_replicas;
  const int first = replica_index * share + std::min(replica_index, num_longer);
  return {.first = first, .end = first + share + (replica_index < num_longer ? 1 : 0)};
}

}  // namespace espalier::dist
