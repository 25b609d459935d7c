// SPDX-License-Identifier: Apache-2.0
#include "dist/mesh.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "common/error.h"
#include "dist/agree.h"
#include "dist/thread_communicator.h"

namespace espalier::dist {
namespace {

using ::testing::HasSubstr;

TEST(PlanMesh, GivesEveryRankOnePlaceAndFindsItBack) {
  for (int num_ranks = 1; num_ranks <= 24; ++num_ranks) {
    for (int num_stages = 1; num_stages <= num_ranks; ++num_stages) {
      if (num_ranks % num_stages != 0) {
        continue;
      }
      std::set<std::pair<int, int>> places;
      for (int rank = 0; rank < num_ranks; ++rank) {
        const MeshPlace place = plan_mesh(rank, num_ranks, num_stages, 0);
        ASSERT_EQ(place.num_stages * place.num_replicas, num_ranks);
        ASSERT_EQ(place.world_rank_of(place.stage_index, place.replica_index), rank);
        ASSERT_LT(place.stage_index, num_stages);
        places.emplace(place.stage_index, place.replica_index);
      }
      ASSERT_EQ(static_cast<int>(places.size()), num_ranks);
    }
  }
}

TEST(PlanMesh, RefusesALayoutThatDoesNotFitAndListsThoseThatDo) {
  for (const auto& [num_stages, num_replicas] : {std::pair(4, 0), {2, 2}, {0, 6}, {-1, 0}, {7, 0}, {3, -2}, {-2, -3}}) {
    try {
      (void)plan_mesh(0, 6, num_stages, num_replicas);
      ADD_FAILURE() << num_stages << " x " << num_replicas << " was accepted";
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr("expected a product of 6"));
      EXPECT_THAT(error.what(), HasSubstr("1x6, 2x3, 3x2, 6x1"));
      EXPECT_NE(dynamic_cast<const Agreed*>(&error), nullptr) << "every rank throws it: one speaks for all";
    }
  }
}

TEST(PlanMicroBatches, CutsContiguousRangesWhoseSizesDifferByAtMostOne) {
  for (int num_micro_batches = 0; num_micro_batches <= 20; ++num_micro_batches) {
    for (int num_replicas = 1; num_replicas <= 8; ++num_replicas) {
      int next = 0;
      for (int replica = 0; replica < num_replicas; ++replica) {
        const MicroBatchRange range = plan_micro_batches(num_micro_batches, num_replicas, replica);
        ASSERT_EQ(range.first, next);
        ASSERT_GE(range.size(), num_micro_batches / num_replicas);
        ASSERT_LE(range.size(), (num_micro_batches + num_replicas - 1) / num_replicas);
        next = range.end;
      }
      ASSERT_EQ(next, num_micro_batches);
    }
  }
}

TEST(MakeMesh, GroupsStagesOfAReplicaAndReplicasOfAStage) {
  run_ranks(6, [](Communicator& world) {
    const Mesh mesh = make_mesh(world, nullptr, 3, 2);
    EXPECT_EQ(mesh.control, &world);
    for (const Communicator* stages : {mesh.pipeline.get(), mesh.stage_control.get()}) {
      EXPECT_EQ(stages->num_ranks(), 3);
      EXPECT_EQ(stages->rank(), mesh.place.stage_index);
      EXPECT_EQ(stages->world_rank(), world.rank());
    }
    EXPECT_EQ(mesh.replicas->num_ranks(), 2);
    EXPECT_EQ(mesh.replicas->rank(), mesh.place.replica_index);
    EXPECT_EQ(mesh.pipeline->traffic_label(), "activation");
    EXPECT_EQ(mesh.replicas->traffic_label(), "gradient");

    const at::Tensor sum = at::full({1}, static_cast<float>(world.rank()));
    mesh.replicas->all_reduce(sum).wait();
    EXPECT_EQ(sum.item<float>(), static_cast<float>(2 * mesh.place.stage_index + 3));
  });
}

}  // namespace
}  // namespace espalier::dist
