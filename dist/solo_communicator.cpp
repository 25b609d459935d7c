// SPDX-License-Identifier: Apache-2.0
#include "dist/solo_communicator.h"

#include <ATen/ATen.h>

#include <cstdio>
#include <cstdlib>

namespace espalier::dist {

Work SoloCommunicator::all_reduce(at::Tensor tensor) {
  require_tensor("all_reduce", tensor);
  return {};
}

Work SoloCommunicator::all_gather(std::vector<at::Tensor> outputs, at::Tensor input) {
  require_tensor("all_gather", input);
  require_outputs("all_gather", outputs, input);
  outputs[0].detach().copy_(input.detach());
  return {};
}

Work SoloCommunicator::broadcast(at::Tensor tensor, int root) {
  require_tensor("broadcast", tensor);
  require_root("broadcast", tensor, root);
  return {};
}

Work SoloCommunicator::send(at::Tensor tensor, int peer, Channel /*channel*/) {
  require_peer("send", tensor, peer);
  return {};
}

Work SoloCommunicator::recv(at::Tensor tensor, int peer, Channel /*channel*/) {
  require_peer("recv", tensor, peer);
  return {};
}

std::unique_ptr<Communicator> SoloCommunicator::split(int color, int /*key*/) {
  require_color(color);
  auto child = std::make_unique<SoloCommunicator>(world_rank_);
  child->set_ledger(ledger());
  return child;
}

void SoloCommunicator::abort(int exit_code) noexcept {
  std::fflush(nullptr);
  std::_Exit(exit_code);
}

}  // namespace espalier::dist
