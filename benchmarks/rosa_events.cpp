// SPDX-License-Identifier: Apache-2.0
// What an event of ROSA costs on a model of a given shape: every attention linear of it merged and factorised anew, the
// work shared by the replicas. One thread per rank; run it alone and under mpirun, and compare.
//   rosa_events                 roberta-large: 96 weights of 1024 x 1024, on one rank
//   mpirun -np 2 rosa_events    the same on two replicas
//   rosa_events WIDTH BLOCKS    another shape
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "dist/mpi_communicator.h"
#include "dist/solo_communicator.h"
#include "train/resampling.h"

namespace {

using namespace espalier;  // NOLINT(google-build-using-namespace): one file, one program

void measure(dist::Communicator& world, std::int64_t width, std::int64_t blocks) {
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("espalier_rosa_events_{}", ::getpid());
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << nlohmann::json({{"model_type", "roberta"},
                                                           {"hidden_size", width},
                                                           {"num_hidden_layers", blocks},
                                                           {"num_attention_heads", 16},
                                                           {"intermediate_size", 4 * width},
                                                           {"vocab_size", 64},
                                                           {"max_position_embeddings", 514},
                                                           {"type_vocab_size", 1},
                                                           {"pad_token_id", 1}});
  const auto backbone = model::read_backbone(folder, {.num_labels = 2});
  std::filesystem::remove_all(folder);
  const auto weights = model::random_backbone_weights(backbone, /*seed=*/1);
  model::StageSlice slice(backbone, {0, backbone.num_layers()}, *weights, {});
  const auto method = peft::make_method({.method = "rosa", .rosa = {.every_steps = 1}}, slice, *weights, /*seed=*/1);
  auto mesh = dist::make_mesh(world, nullptr, /*num_stages=*/1, /*num_replicas=*/0);
  optim::AdamW optimizer({}, {});
  train::ResamplingEvents events(*method, mesh, optimizer, /*steps_per_epoch=*/1);
  double before = 0;
  for (std::int64_t event = 0; event < 3; ++event) {
    world.barrier();
    events.run_before(event);
    if (world.rank() == 0) {
      fmt::print("{} replica(s): event {} of {} weights of {} x {}: {:.2f} s\n", world.num_ranks(), event,
                 method->resampling()->num_weights(), width, width, events.seconds() - before);
      std::fflush(stdout);
    }
    before = events.seconds();
  }
}

}  // namespace

int main(int argc, char** argv) {
  at::set_num_threads(1);
  const auto number = [&](int place, std::int64_t otherwise) {
    return argc > place ? std::strtoll(argv[place], nullptr, 10) : otherwise;
  };
  if (!dist::MpiEnvironment::is_launched()) {
    dist::SoloCommunicator world;
    measure(world, number(1, 1024), number(2, 24));
    return 0;
  }
  dist::MpiEnvironment environment(&argc, &argv);
  measure(*environment.make_world(), number(1, 1024), number(2, 24));
  return 0;
}
