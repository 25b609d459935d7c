// SPDX-License-Identifier: Apache-2.0
// Stands in for nccl_communicator.cpp in a build without CUDA, so that callers need no #ifdef.
#include "common/error.h"
#include "dist/nccl_communicator.h"

namespace espalier::dist {

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& /*host*/, at::Device /*device*/) {
  throw ConfigError(
      "NCCL: expected a build with CUDA, found one without; configure with -DESPALIER_CUDA=ON (preset cuda), or run "
      "with --model.device=cpu");
}

}  // namespace espalier::dist
