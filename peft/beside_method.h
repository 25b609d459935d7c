// SPDX-License-Identifier: Apache-2.0
// The route beside: the frozen backbone runs without a graph, layer by layer, and the side network climbs along it.
// Images behind a text are seen by the side network alone, so that the backbone stays without a graph although their
// embedding trains.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "peft/side_network.h"

namespace espalier::peft {

class BesideMethod final : public Method {
 public:
  BesideMethod(model::StageSlice& slice, std::unique_ptr<SideNetwork> network)
      : slice_(slice), network_(std::move(network)) {}

  [[nodiscard]] std::string_view name() const override { return network_->name(); }
  [[nodiscard]] Route route() const override { return Route::kBeside; }
  /// The backbone's entries as far as it is run, and the side network's, called "side." and their name there.
  [[nodiscard]] model::CarryPlan plan_carry(int first_layer, const model::BatchShape& shape) const override;
  [[nodiscard]] const std::vector<TrainedTensor>& trained() const override { return network_->trained(); }
  [[nodiscard]] ImportanceStart* importance_start() override { return network_->importance_start(); }
  [[nodiscard]] StageResult forward(model::Carry incoming, const model::StageInputs& inputs,
                                    const model::ForwardContext& context, bool keeps_pass) override;
  [[nodiscard]] std::vector<std::pair<std::string, std::string>> describe_export() const override {
    return network_->describe_export();
  }

 private:
  /// Runs one layer of the backbone on `carry`, if anything is read of it; returns an embedding's output before
  /// dropout.
  at::Tensor run_frozen(const model::Layer& layer, const model::StageInputs& inputs,
                        const model::ForwardContext& context, model::Carry& carry) const;

  model::StageSlice& slice_;
  std::unique_ptr<SideNetwork> network_;
};

}  // namespace espalier::peft
