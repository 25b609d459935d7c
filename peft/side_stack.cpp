// SPDX-License-Identifier: Apache-2.0
#include "peft/side_stack.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace espalier::peft {
namespace {

std::vector<at::Tensor> weights_of(SideNetwork& network) {
  std::vector<at::Tensor> weights;
  network.visit_weights([&](const at::Tensor& slot) { weights.push_back(slot); });
  return weights;
}

}  // namespace

bool have_one_shape(SideNetwork& one, SideNetwork& other) {
  const auto same_sizes = [](const at::Tensor& a, const at::Tensor& b) { return a.sizes() == b.sizes(); };
  return one.name() == other.name() && one.describe_export() == other.describe_export() &&
         std::ranges::equal(weights_of(one), weights_of(other), same_sizes);
}

StackedWeights::StackedWeights(const std::vector<SideNetwork*>& networks) : first_(*networks.front()) {
  if (networks.size() == 1) {
    return;
  }
  std::vector<std::vector<at::Tensor>> by_slot;
  for (SideNetwork* network : networks) {
    const auto weights = weights_of(*network);
    by_slot.resize(weights.size());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      by_slot[i].push_back(weights[i]);
    }
  }
  own_ = weights_of(first_);
  first_.visit_weights([&, i = std::size_t{0}](at::Tensor& slot) mutable { slot = at::stack(by_slot[i++]); });
}

StackedWeights::~StackedWeights() {
  if (!own_.empty()) {
    first_.visit_weights([&, i = std::size_t{0}](at::Tensor& slot) mutable { slot = own_[i++]; });
  }
}

model::Carry stack(const std::vector<model::Carry>& carries) {
  if (carries.size() == 1) {
    return carries.front();
  }
  model::Carry stacked;
  for (const auto& [name, value] : carries.front()) {
    std::vector<at::Tensor> of_networks;
    of_networks.reserve(carries.size());
    for (const model::Carry& carry : carries) {
      of_networks.push_back(carry.at(name));
    }
    stacked.emplace(name, name.starts_with(kSharedPrefix) ? value : at::stack(of_networks));
  }
  return stacked;
}

std::vector<model::Carry> unstack(const model::Carry& stacked, std::size_t num_networks) {
  if (num_networks == 1) {
    return {stacked};
  }
  std::vector<model::Carry> carries(num_networks);
  for (const auto& [name, value] : stacked) {
    const bool is_shared = name.starts_with(kSharedPrefix);
    const auto of_networks = is_shared ? std::vector<at::Tensor>(num_networks, value) : value.unbind(0);
    for (std::size_t k = 0; k < num_networks; ++k) {
      carries[k].emplace(name, of_networks[k]);
    }
  }
  return carries;
}

}  // namespace espalier::peft
