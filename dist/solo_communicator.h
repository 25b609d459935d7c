// SPDX-License-Identifier: Apache-2.0
// The group of one rank: nothing moves, nothing is counted. It stands in wherever one process runs alone, so that no
// caller asks whether there are others.
#pragma once

#include "dist/communicator.h"

namespace espalier::dist {

class SoloCommunicator final : public Communicator {
 public:
  explicit SoloCommunicator(int world_rank = 0) : world_rank_(world_rank) {}

  [[nodiscard]] int rank() const override { return 0; }
  [[nodiscard]] int num_ranks() const override { return 1; }
  [[nodiscard]] int world_rank() const override { return world_rank_; }
  [[nodiscard]] std::string backend() const override { return "solo"; }

  [[nodiscard]] Work all_reduce(at::Tensor tensor) override;
  [[nodiscard]] Work all_gather(std::vector<at::Tensor> outputs, at::Tensor input) override;
  [[nodiscard]] Work broadcast(at::Tensor tensor, int root) override;
  /// Throws: CommError always; there is no peer.
  [[nodiscard]] Work send(at::Tensor tensor, int peer, Channel channel) override;
  [[nodiscard]] Work recv(at::Tensor tensor, int peer, Channel channel) override;
  void barrier() override {}
  [[nodiscard]] std::unique_ptr<Communicator> split(int color, int key) override;
  /// Ends the process.
  void abort(int exit_code) noexcept override;

 private:
  int world_rank_;
};

}  // namespace espalier::dist
