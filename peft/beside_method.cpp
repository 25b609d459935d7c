// SPDX-License-Identifier: Apache-2.0
#include "peft/beside_method.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <list>
#include <map>

#include "common/error.h"
#include "model/dropout.h"
#include "model/embedding_layer.h"
#include "peft/autograd_pass.h"
#include "peft/side_stack.h"

namespace espalier::peft {
namespace {

constexpr std::string_view kPrefix = "side.";

double embedding_dropout(const model::LayerPlan& plan) {
  return plan.embedding ? plan.embedding->dropout : plan.patch_embedding->dropout;
}

/// How an entry of the network's carry is called where all travel.
std::string travel_name(const SideObjective& objective, std::string_view own_name) {
  const bool is_shared = own_name.starts_with(kSharedPrefix);
  return fmt::format("{}{}{}", kPrefix, is_shared ? "" : objective_prefix(objective.part.name), own_name);
}

/// The graphs of several objectives, which have nothing in common: each is gone through, and freed, by itself.
class JointPass final : public StagePass {
 public:
  /// `trained`: of each tensor of `pass`, its index here; outlives this.
  void add(std::unique_ptr<StagePass> pass, const std::vector<int>& trained) {
    passes_.emplace_back(std::move(pass), &trained);
  }

  model::Carry backward(const model::Carry& output_gradients, const GradientSink& sink) override {
    model::Carry input_gradients;
    for (auto& [pass, trained] : passes_) {
      const auto to_joint = [&sink, &trained = *trained](int index, at::Tensor gradient) {
        sink(trained[static_cast<std::size_t>(index)], std::move(gradient));
      };
      input_gradients.merge(pass->backward(output_gradients, to_joint));
      pass.reset();
    }
    return input_gradients;
  }

 private:
  std::vector<std::pair<std::unique_ptr<StagePass>, const std::vector<int>*>> passes_;
};

}  // namespace

BesideMethod::BesideMethod(model::StageSlice& slice, std::vector<SideObjective> objectives, bool is_batched)
    : slice_(slice), objectives_(std::move(objectives)) {
  const bool drops = objectives_.front().network->has_backbone_dropout();
  for (SideObjective& objective : objectives_) {
    SideNetwork& network = *objective.network;
    if (network.has_backbone_dropout() != drops) {
      throw ConfigError(
          fmt::format("objective {}: expected {} the backbone's dropout as objective {}, since they share its forward; "
                      "give all the same peft.lst.backbone_dropout",
                      objective.part.name, drops ? "with" : "without", objectives_.front().part.name));
    }
    last_tap_layer_ = std::max(last_tap_layer_, network.last_tap_layer());
    objective.part.first_trained = static_cast<int>(trained_.size());
    for (TrainedTensor tensor : network.trained()) {
      tensor.name.insert(0, objective_prefix(objective.part.name));
      trained_.push_back(std::move(tensor));
    }
    objective.part.end_trained = static_cast<int>(trained_.size());
    objective.part.importance_start = network.importance_start();
    objective.part.facts = network.describe_export();
    objective.part.distill_weight = network.distill_weight();
  }
  if (slice.options().drop_path > 0 && !drops) {
    throw ConfigError(
        fmt::format("model.drop_path: expected 0 with peft.{}.backbone_dropout=false, whose backbone runs as in "
                    "evaluation; found {}; leave model.drop_path out, or give the backbone its dropout",
                    objectives_.front().network->name(), slice.options().drop_path));
  }
  single_groups_ = make_groups(/*is_batched=*/false);
  // Each network embeds the images behind a text by itself.
  training_groups_ = make_groups(is_batched && slice_.backbone().visual() == nullptr);
}

std::vector<BesideMethod::Group> BesideMethod::make_groups(bool is_batched) {
  std::vector<Group> groups;
  for (std::size_t k = 0; k < objectives_.size(); ++k) {
    const auto found = std::ranges::find_if(groups, [&](const Group& group) {
      return is_batched && have_one_shape(*objectives_[group.members.front()].network, *objectives_[k].network);
    });
    Group& group = found == groups.end() ? groups.emplace_back() : *found;
    group.members.push_back(k);
    const Objective& part = objectives_[k].part;
    for (int index = part.first_trained; index < part.end_trained; ++index) {
      group.trained.push_back(trained_[static_cast<std::size_t>(index)]);
      group.indices.push_back(index);
    }
  }
  return groups;
}

std::vector<Objective> BesideMethod::objectives() {
  std::vector<Objective> parts;
  for (const SideObjective& objective : objectives_) parts.push_back(objective.part);
  return parts;
}

model::CarryPlan BesideMethod::plan_carry(int first_layer, const model::BatchShape& shape) const {
  model::CarryPlan plan;
  if (first_layer <= last_tap_layer_) {
    plan =
        model::plan_chain_carry(slice_.backbone(), first_layer, model::text_only(shape), slice_.options().compute_type);
  }
  std::map<std::string, model::CarryEntry> side;  // what networks share is there once
  for (const SideObjective& objective : objectives_) {
    for (model::CarryEntry& entry : objective.network->plan_carry(first_layer, shape)) {
      entry.name = travel_name(objective, entry.name);
      side.emplace(entry.name, std::move(entry));
    }
  }
  for (auto& [name, entry] : side) {
    plan.push_back(std::move(entry));
  }
  return plan;
}

const model::Layer& BesideMethod::layer_of(const SideObjective& objective, std::size_t place) const {
  return *(objective.slice ? *objective.slice : slice_).layers()[place];
}

model::ForwardContext BesideMethod::context_of(const SideObjective& objective,
                                               const model::ForwardContext& context) const {
  model::ForwardContext own = context;
  own.key.seed = objective.dropout_seed.value_or(context.key.seed);
  return own;
}

std::vector<BesideMethod::Climb> BesideMethod::enter(model::Carry& incoming, const model::StageInputs& inputs,
                                                     const model::ForwardContext& context, bool keeps_pass) const {
  std::vector<Climb> climbs;
  for (const Group& group : keeps_pass ? training_groups_ : single_groups_) {
    const SideObjective& first = objectives_[group.members.front()];
    Climb climb{group, context_of(first, context), first.network->adapt(inputs), {}, {}, {}};
    std::vector<model::Carry> sides;
    for (const std::size_t k : group.members) {
      const SideObjective& objective = objectives_[k];
      if (group.members.size() > 1) {
        climb.context.seeds.push_back(context_of(objective, context).key.seed);
      }
      model::Carry& side = sides.emplace_back();
      if (slice_.range().first == 0) {
        continue;
      }
      const model::CarryPlan own_plan = objective.network->plan_carry(slice_.range().first, {});
      model::CarryPlan plan = own_plan;
      for (model::CarryEntry& entry : plan) {
        entry.name = travel_name(objective, entry.name);
      }
      if (keeps_pass) {
        climb.leaves.merge(make_leaves(incoming, plan));
      }
      for (const model::CarryEntry& entry : own_plan) {
        side.emplace(entry.name, incoming.at(travel_name(objective, entry.name)));
      }
    }
    climb.side = stack(sides);
    climbs.push_back(std::move(climb));
  }
  std::erase_if(incoming, [](const auto& entry) { return entry.first.starts_with(kPrefix); });
  return climbs;
}

StageResult BesideMethod::forward(model::Carry incoming, const model::StageInputs& inputs,
                                  const model::ForwardContext& context, bool keeps_pass) {
  const at::AutoGradMode grad_mode(keeps_pass);
  std::vector<Climb> climbs = enter(incoming, inputs, context, keeps_pass);
  std::list<StackedWeights> stacks;
  for (const Climb& climb : climbs) {
    std::vector<SideNetwork*> networks;
    for (const std::size_t k : climb.group.members) {
      networks.push_back(objectives_[k].network.get());
    }
    stacks.emplace_back(networks);
  }
  model::Carry backbone = std::move(incoming);
  const model::StageInputs backbone_inputs = model::text_only(inputs);
  for (std::size_t place = 0; place < slice_.layers().size(); ++place) {
    const model::LayerPlan& plan = slice_.layers()[place]->plan();
    if (plan.kind == model::LayerKind::kHead) {
      for (Climb& climb : climbs) {
        read_out(climb, place, backbone, backbone_inputs, context);
      }
      return leave(predict(*slice_.layers()[place], backbone_inputs, context, backbone, keeps_pass), std::move(climbs),
                   keeps_pass);
    }
    const at::Tensor undropped = run_frozen(*slice_.layers()[place], backbone_inputs, context, backbone);
    climb_past(place, backbone, undropped, inputs, climbs);
    if (static_cast<int>(plan.index) >= last_tap_layer_) {
      backbone.clear();
    }
  }
  for (Climb& climb : climbs) {
    hand_on(climb);
  }
  model::Carry outgoing;
  if (slice_.range().end <= last_tap_layer_) {
    for (const auto& entry : model::plan_chain_carry(slice_.backbone(), slice_.range().end, {}, at::kFloat)) {
      outgoing.emplace(entry.name, backbone.at(entry.name));
    }
  }
  return leave(std::move(outgoing), std::move(climbs), keeps_pass);
}

void BesideMethod::climb_past(std::size_t place, const model::Carry& backbone, const at::Tensor& undropped,
                              const model::StageInputs& inputs, std::vector<Climb>& climbs) const {
  for (std::size_t k = 0; k < climbs.size(); ++k) {
    Climb& climb = climbs[k];
    const SideObjective& first = objectives_[climb.group.members.front()];
    const model::Layer& layer = layer_of(first, place);
    Tap tap{layer, backbone, undropped};
    const auto& words = layer.plan().embedding;
    if (words && words->visual && undropped.size(1) > 0) {
      const auto& embedding = static_cast<const model::EmbeddingLayer&>(layer);
      const at::Tensor images = embedding.embed_visual(inputs, climb.context).to(undropped.scalar_type());
      tap.undropped = at::cat({undropped, images}, 1);
    }
    first.network->climb(place, tap, climb.inputs, climb.context, climb.side);
    for (auto& [name, value] : climb.side) {
      // Equal bits need one memory only.
      for (std::size_t j = 0; j < k && name.starts_with(kSharedPrefix); ++j) {
        if (const auto same = climbs[j].side.find(name); same != climbs[j].side.end()) {
          value = same->second;
        }
      }
    }
  }
}

void BesideMethod::read_out(Climb& climb, std::size_t place, const model::Carry& backbone,
                            const model::StageInputs& inputs, const model::ForwardContext& context) const {
  const auto& members = climb.group.members;
  const auto sides = unstack({{"hidden", climb.side.at("hidden")}}, members.size());
  for (std::size_t member = 0; member < sides.size(); ++member) {
    const SideObjective& objective = objectives_[members[member]];
    const model::Layer& head = layer_of(objective, place);
    climb.outputs.emplace(
        logits_name(objective.part),
        objective.network->read_out(head, {head, backbone, {}}, inputs, context_of(objective, context), sides[member]));
  }
}

void BesideMethod::hand_on(Climb& climb) const {
  // What a network does not hand on may be nobody's stack (a bias of the backbone's).
  model::Carry handed_on;
  const auto& members = climb.group.members;
  for (const model::CarryEntry& entry : objectives_[members.front()].network->plan_carry(slice_.range().end, {})) {
    handed_on.emplace(entry.name, climb.side.at(entry.name));
  }
  const auto sides = unstack(handed_on, members.size());
  for (std::size_t member = 0; member < sides.size(); ++member) {
    for (const auto& [name, value] : sides[member]) {
      climb.outputs.emplace(travel_name(objectives_[members[member]], name), value);
    }
  }
}

model::Carry BesideMethod::predict(const model::Layer& head, const model::StageInputs& inputs,
                                   const model::ForwardContext& context, const model::Carry& backbone,
                                   bool keeps_pass) const {
  const bool is_wanted = keeps_pass && std::any_of(objectives_.begin(), objectives_.end(), [](const auto& objective) {
                           return objective.network->distill_weight() > 0;
                         });
  if (!is_wanted) {
    return {};
  }
  const at::NoGradGuard no_grad;
  model::Carry carry{{"hidden", backbone.at("hidden")}};
  head.forward(carry, inputs, context);
  return {{kTeacherLogits, carry.at("logits")}};
}

StageResult BesideMethod::leave(model::Carry backbone, std::vector<Climb> climbs, bool keeps_pass) const {
  StageResult whole;
  whole.outgoing = std::move(backbone);
  auto passes = std::make_unique<JointPass>();
  bool has_any = false;
  for (Climb& climb : climbs) {
    StageResult own = finish_stage(std::move(climb.outputs), std::move(climb.leaves), climb.group.trained, keeps_pass);
    whole.outgoing.merge(own.outgoing);
    if (own.pass) {
      passes->add(std::move(own.pass), climb.group.indices);
      has_any = true;
    }
  }
  if (has_any) {
    whole.pass = std::move(passes);
  }
  return whole;
}

at::Tensor BesideMethod::run_frozen(const model::Layer& layer, const model::StageInputs& inputs,
                                    const model::ForwardContext& context, model::Carry& carry) const {
  const at::NoGradGuard no_grad;
  const model::LayerPlan& plan = layer.plan();
  model::ForwardContext frozen = context;
  frozen.is_training = context.is_training && objectives_.front().network->has_backbone_dropout();
  const bool is_embedding = plan.embedding || plan.patch_embedding;
  if (!is_embedding) {
    if (static_cast<int>(plan.index) <= last_tap_layer_) {
      layer.forward(carry, inputs, frozen);
    }
    return {};
  }
  // The side network drops the same embedding by a mask of its own, so the layer runs without.
  model::ForwardContext without_dropout = context;
  without_dropout.is_training = false;
  carry.try_emplace("hidden");  // nothing, where a decoder begins above the last tap
  layer.forward(carry, inputs, without_dropout);
  at::Tensor& hidden = carry.at("hidden");
  hidden = hidden.to(slice_.options().compute_type);
  at::Tensor undropped = hidden;
  if (frozen.is_training) {
    const model::LayerPlace place{RandomDomain::kBackbone, plan.index};
    hidden = model::dropout(hidden, embedding_dropout(plan), frozen, place, model::DropoutSite::kEmbedding);
  }
  return undropped;
}

}  // namespace espalier::peft
