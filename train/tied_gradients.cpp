// SPDX-License-Identifier: Apache-2.0
#include "train/tied_gradients.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "dist/agree.h"

namespace espalier::train {

TiedGradients::TiedGradients(dist::Mesh& mesh, const std::vector<std::string>& names) : mesh_(mesh) {
  std::map<std::string, std::vector<int>> stages_of;  // a stage once for each of its places
  for (int stage = 0; stage < mesh.place.num_stages; ++stage) {
    const auto text = dist::broadcast_text(*mesh.stage_control, nlohmann::json(names).dump(), stage);
    for (const auto& name : nlohmann::json::parse(text)) {
      stages_of[name.get<std::string>()].push_back(stage);
    }
  }
  for (auto& [name, stages] : stages_of) {
    Tie tie;
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (names[i] == name) tie.places.push_back(i);
    }
    if (stages.size() == 1 || tie.places.empty()) continue;
    stages.erase(std::unique(stages.begin(), stages.end()), stages.end());
    tie.stages = std::move(stages);
    ties_.push_back(std::move(tie));
  }
}

void TiedGradients::add(std::vector<at::Tensor>& gradients) {
  auto& pipeline = *mesh_.pipeline;
  const dist::TrafficLabelScope label(pipeline, "tied_gradient");
  const int own = mesh_.place.stage_index;
  for (const auto& tie : ties_) {
    const auto self = std::find(tie.stages.begin(), tie.stages.end(), own);
    const int last = tie.stages.back();
    at::Tensor sum = gradients[tie.places.front()];
    if (self != tie.stages.begin()) {
      auto before = at::empty_like(sum);
      pipeline.recv(before, *(self - 1), dist::Channel::kTied).wait();
      sum = before.add_(sum);
    }
    for (std::size_t i = 1; i < tie.places.size(); ++i) {
      sum.add_(gradients[tie.places[i]]);
    }
    if (own != last) {
      pipeline.send(sum, *(self + 1), dist::Channel::kTied).wait();
      pipeline.recv(sum, last, dist::Channel::kTied).wait();
    } else {
      for (auto stage = tie.stages.begin(); stage != self; ++stage) {
        pipeline.send(sum, *stage, dist::Channel::kTied).wait();
      }
    }
    for (const auto place : tie.places) {
      gradients[place] = sum;
    }
  }
}

}  // namespace espalier::train
