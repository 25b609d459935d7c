// SPDX-License-Identifier: Apache-2.0
#include "train/gather.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "dist/agree.h"

namespace espalier::train {

std::map<std::string, at::Tensor> gather_stages(dist::Mesh& mesh, const std::map<std::string, at::Tensor>& tensors) {
  auto& control = *mesh.control;
  std::map<std::string, at::Tensor> gathered;
  for (int stage = 0; stage < mesh.place.num_stages; ++stage) {
    const int owner = mesh.place.world_rank_of(stage, /*replica=*/0);
    if (owner == 0) {
      if (control.rank() == 0) {
        for (const auto& [name, tensor] : tensors) {
          gathered.emplace(name, tensor.detach().to(at::kCPU, /*non_blocking=*/false, /*copy=*/true).contiguous());
        }
      }
      continue;
    }
    nlohmann::json plan = nlohmann::json::array();
    if (control.rank() == owner) {
      for (const auto& [name, tensor] : tensors) {
        plan.push_back({name, tensor.sizes().vec(), static_cast<int>(tensor.scalar_type())});
      }
    }
    plan = nlohmann::json::parse(dist::broadcast_text(control, plan.dump(), owner));
    if (control.rank() == owner) {
      for (const auto& [name, tensor] : tensors) {
        control.send(tensor.detach().to(at::kCPU).contiguous(), 0, dist::Channel::kControl).wait();
      }
    } else if (control.rank() == 0) {
      for (const auto& entry : plan) {
        auto tensor =
            at::empty(entry[1].get<std::vector<std::int64_t>>(), static_cast<at::ScalarType>(entry[2].get<int>()));
        control.recv(tensor, owner, dist::Channel::kControl).wait();
        gathered.emplace(entry[0].get<std::string>(), std::move(tensor));
      }
    }
  }
  return gathered;
}

}  // namespace espalier::train
