// SPDX-License-Identifier: Apache-2.0
// Plans stages of a model folder and uses the single-process communicator: a consumer's view of the installed headers.
#include <ATen/ATen.h>

#include <cstdio>

#include "dist/mesh.h"
#include "dist/solo_communicator.h"
#include "model/slice.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    return 2;
  }
  const auto backbone = espalier::model::read_backbone(argv[1], {});
  const auto stages = espalier::model::plan_stages(backbone, 2);
  espalier::dist::SoloCommunicator world;
  auto value = at::ones({2});
  world.all_reduce(value).wait();
  std::printf("%d layers, 2 stages, the second begins at %d\n", backbone.num_layers(), stages[1].first);
  return value.sum().item<float>() == 2.0F ? 0 : 1;
}
