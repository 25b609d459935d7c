// SPDX-License-Identifier: Apache-2.0
// The route beside: the frozen backbone runs without a graph, layer by layer, and side networks climb along it: one, or
// one for each of several objectives, which share the frozen forward and nothing else.
// Images behind a text are seen by the side networks alone, so that the backbone stays without a graph although their
// embedding trains.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "peft/side_network.h"

namespace espalier::peft {

/// A network on the frozen forward, with the task weights that train with it.
struct SideObjective {
  Objective part;                                      ///< its name is given; the rest the method fills in
  std::unique_ptr<model::StageSlice> slice = nullptr;  ///< has its task weights; null: the method's own slice
  std::unique_ptr<SideNetwork> network = nullptr;      ///< on that slice
  std::optional<std::uint64_t> dropout_seed = {};      ///< none: the run's
};

class BesideMethod final : public Method {
 public:
  /// `is_batched`: in training, networks of one shape climb together, on stacks of their weights and states; the last
  /// bits may differ from those that each gives alone.
  /// Owns: `objectives`; `slice` outlives the method. Requires: at least one objective; names differ.
  /// Throws: ConfigError when some want dropout in the frozen forward and others do not, and for a drop_path where it
  /// has none.
  BesideMethod(model::StageSlice& slice, std::vector<SideObjective> objectives, bool is_batched);

  [[nodiscard]] std::string_view name() const override { return objectives_.front().network->name(); }
  [[nodiscard]] Route route() const override { return Route::kBeside; }
  /// The backbone's entries as far as it is run, and each network's, called "side.", the objective's prefix, and their
  /// name there; those that networks share once, without a prefix.
  [[nodiscard]] model::CarryPlan plan_carry(int first_layer, const model::BatchShape& shape) const override;
  [[nodiscard]] const std::vector<TrainedTensor>& trained() const override { return trained_; }
  [[nodiscard]] std::vector<Objective> objectives() override;
  [[nodiscard]] StageResult forward(model::Carry incoming, const model::StageInputs& inputs,
                                    const model::ForwardContext& context, bool keeps_pass) override;
  [[nodiscard]] nlohmann::json describe_export() const override {
    return objectives_.front().network->describe_export();
  }

 private:
  /// Objectives that climb together.
  struct Group {
    std::vector<std::size_t> members;    ///< indices of objectives
    std::vector<TrainedTensor> trained;  ///< those of all members
    std::vector<int> indices;            ///< of each of these, its place in trained_
  };
  /// One group's part of a forward.
  struct Climb {
    const Group& group;
    model::ForwardContext context;
    model::StageInputs inputs;
    model::Carry side;    ///< by the networks' own names; a stack of them, [K, ...], where several climb
    model::Carry leaves;  ///< by the names that travel
    model::Carry outputs;
  };

  /// Objectives with networks of one shape together, or each by itself.
  [[nodiscard]] std::vector<Group> make_groups(bool is_batched);
  [[nodiscard]] model::ForwardContext context_of(const SideObjective& objective,
                                                 const model::ForwardContext& context) const;
  [[nodiscard]] std::vector<Climb> enter(model::Carry& incoming, const model::StageInputs& inputs,
                                         const model::ForwardContext& context, bool keeps_pass) const;
  /// Runs one layer of the backbone on `carry`, if anything is read of it; returns an embedding's output before
  /// dropout.
  at::Tensor run_frozen(const model::Layer& layer, const model::StageInputs& inputs,
                        const model::ForwardContext& context, model::Carry& carry) const;
  /// Takes every climb past layer `place`, which put out `backbone`; `undropped`: what run_frozen() returned of it.
  void climb_past(std::size_t place, const model::Carry& backbone, const at::Tensor& undropped,
                  const model::StageInputs& inputs, std::vector<Climb>& climbs) const;
  /// Adds the logits of each of the group at the head to its outputs.
  void read_out(Climb& climb, std::size_t place, const model::Carry& backbone, const model::StageInputs& inputs,
                const model::ForwardContext& context) const;
  /// Adds what each of the group hands on to the next stage to its outputs.
  void hand_on(Climb& climb) const;
  /// The backbone's own predictions, if an objective learns from them.
  [[nodiscard]] model::Carry predict(const model::Layer& head, const model::StageInputs& inputs,
                                     const model::ForwardContext& context, const model::Carry& backbone,
                                     bool keeps_pass) const;
  [[nodiscard]] const model::Layer& layer_of(const SideObjective& objective, std::size_t place) const;
  [[nodiscard]] StageResult leave(model::Carry backbone, std::vector<Climb> climbs, bool keeps_pass) const;

  model::StageSlice& slice_;
  std::vector<SideObjective> objectives_;
  std::vector<TrainedTensor> trained_;
  std::vector<Group> training_groups_, single_groups_;
  int last_tap_layer_ = 0;
};

}  // namespace espalier::peft
