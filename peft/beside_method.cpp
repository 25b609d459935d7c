// SPDX-License-Identifier: Apache-2.0
#include "peft/beside_method.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <map>

#include "common/error.h"
#include "model/dropout.h"
#include "model/embedding_layer.h"
#include "peft/autograd_pass.h"

namespace espalier::peft {
namespace {

constexpr std::string_view kPrefix = "side.";

double embedding_dropout(const model::LayerPlan& plan) {
  return plan.embedding ? plan.embedding->dropout : plan.patch_embedding->dropout;
}

/// How an entry of the network's carry is called where all travel.
std::string travel_name(const SideObjective& objective, std::string_view own_name) {
  const bool is_shared = own_name.starts_with(kSharedPrefix);
  return fmt::format("{}{}{}", kPrefix, is_shared ? "" : objective_prefix(objective.name), own_name);
}

/// The graphs of several objectives, which have nothing in common: each is gone through, and freed, by itself.
class JointPass final : public StagePass {
 public:
  void add(std::unique_ptr<StagePass> pass, int first_trained) { passes_.emplace_back(std::move(pass), first_trained); }

  model::Carry backward(const model::Carry& output_gradients, const GradientSink& sink) override {
    model::Carry input_gradients;
    for (auto& [pass, first_trained] : passes_) {
      const auto offset = [&sink, first = first_trained](int index, at::Tensor gradient) {
        sink(first + index, std::move(gradient));
      };
      input_gradients.merge(pass->backward(output_gradients, offset));
      pass.reset();
    }
    return input_gradients;
  }

 private:
  std::vector<std::pair<std::unique_ptr<StagePass>, int>> passes_;
};

}  // namespace

BesideMethod::BesideMethod(model::StageSlice& slice, std::vector<SideObjective> objectives)
    : slice_(slice), objectives_(std::move(objectives)) {
  const bool drops = objectives_.front().network->has_backbone_dropout();
  for (const SideObjective& objective : objectives_) {
    const SideNetwork& network = *objective.network;
    if (network.has_backbone_dropout() != drops) {
      throw ConfigError(
          fmt::format("objective {}: expected {} the backbone's dropout as objective {}, since they share its forward; "
                      "give all the same peft.lst.backbone_dropout",
                      objective.name, drops ? "with" : "without", objectives_.front().name));
    }
    last_tap_layer_ = std::max(last_tap_layer_, network.last_tap_layer());
    for (TrainedTensor tensor : network.trained()) {
      tensor.name.insert(0, objective_prefix(objective.name));
      trained_.push_back(std::move(tensor));
    }
  }
}

std::vector<Objective> BesideMethod::objectives() {
  std::vector<Objective> described;
  int first = 0;
  for (const SideObjective& objective : objectives_) {
    SideNetwork& network = *objective.network;
    const int end = first + static_cast<int>(network.trained().size());
    described.push_back(
        {objective.name, first, end, network.importance_start(), network.describe_export(), network.distill_weight()});
    first = end;
  }
  return described;
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

std::vector<BesideMethod::Climb> BesideMethod::enter(model::Carry& incoming, const model::StageInputs& inputs,
                                                     const model::ForwardContext& context, bool keeps_pass) const {
  std::vector<Climb> climbs;
  for (const SideObjective& objective : objectives_) {
    Climb climb;
    climb.context = context;
    climb.inputs = objective.network->adapt(inputs);
    climb.context.key.seed = objective.dropout_seed.value_or(context.key.seed);
    if (slice_.range().first > 0) {
      const model::CarryPlan own_plan = objective.network->plan_carry(slice_.range().first, {});
      model::CarryPlan plan = own_plan;
      for (model::CarryEntry& entry : plan) {
        entry.name = travel_name(objective, entry.name);
      }
      if (keeps_pass) {
        climb.leaves = make_leaves(incoming, plan);
      }
      for (const model::CarryEntry& entry : own_plan) {
        climb.side.emplace(entry.name, incoming.at(travel_name(objective, entry.name)));
      }
    }
    climbs.push_back(std::move(climb));
  }
  std::erase_if(incoming, [](const auto& entry) { return entry.first.starts_with(kPrefix); });
  return climbs;
}

StageResult BesideMethod::forward(model::Carry incoming, const model::StageInputs& inputs,
                                  const model::ForwardContext& context, bool keeps_pass) {
  const at::AutoGradMode grad_mode(keeps_pass);
  std::vector<Climb> climbs = enter(incoming, inputs, context, keeps_pass);
  model::Carry backbone = std::move(incoming);
  const model::StageInputs backbone_inputs = model::text_only(inputs);
  for (std::size_t place = 0; place < slice_.layers().size(); ++place) {
    const model::LayerPlan& plan = slice_.layers()[place]->plan();
    if (plan.kind == model::LayerKind::kHead) {
      for (std::size_t k = 0; k < climbs.size(); ++k) {
        const model::Layer& head = layer_of(objectives_[k], place);
        climbs[k].outputs.emplace(objective_prefix(objectives_[k].name) + "logits",
                                  objectives_[k].network->read_out(head, {head, backbone, {}}, backbone_inputs,
                                                                   climbs[k].context, climbs[k].side));
      }
      return leave(predict(*slice_.layers()[place], backbone_inputs, context, backbone, keeps_pass), std::move(climbs),
                   keeps_pass);
    }
    const at::Tensor undropped = run_frozen(*slice_.layers()[place], backbone_inputs, context, backbone);
    for (std::size_t k = 0; k < climbs.size(); ++k) {
      const model::Layer& layer = layer_of(objectives_[k], place);
      Tap tap{layer, backbone, undropped};
      if (plan.embedding && plan.embedding->visual && undropped.size(1) > 0) {
        const auto& embedding = static_cast<const model::EmbeddingLayer&>(layer);
        tap.undropped =
            at::cat({undropped, embedding.embed_visual(inputs, climbs[k].context).to(undropped.scalar_type())}, 1);
      }
      objectives_[k].network->climb(place, tap, climbs[k].inputs, climbs[k].context, climbs[k].side);
      for (auto& [name, value] : climbs[k].side) {
        // Equal bits need one memory only.
        for (std::size_t j = 0; j < k && name.starts_with(kSharedPrefix); ++j) {
          if (const auto same = climbs[j].side.find(name); same != climbs[j].side.end()) {
            value = same->second;
          }
        }
      }
    }
    if (static_cast<int>(plan.index) >= last_tap_layer_) {
      backbone.clear();
    }
  }
  for (std::size_t k = 0; k < climbs.size(); ++k) {
    for (const model::CarryEntry& entry : objectives_[k].network->plan_carry(slice_.range().end, {})) {
      climbs[k].outputs.emplace(travel_name(objectives_[k], entry.name), climbs[k].side.at(entry.name));
    }
  }
  model::Carry outgoing;
  if (slice_.range().end <= last_tap_layer_) {
    for (const auto& entry : model::plan_chain_carry(slice_.backbone(), slice_.range().end, {}, at::kFloat)) {
      outgoing.emplace(entry.name, backbone.at(entry.name));
    }
  }
  return leave(std::move(outgoing), std::move(climbs), keeps_pass);
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
  int first_trained = 0;
  bool has_any = false;
  for (std::size_t k = 0; k < climbs.size(); ++k) {
    const auto& trained = objectives_[k].network->trained();
    StageResult own = finish_stage(std::move(climbs[k].outputs), std::move(climbs[k].leaves), trained, keeps_pass);
    whole.outgoing.merge(own.outgoing);
    if (own.pass) {
      passes->add(std::move(own.pass), first_trained);
      has_any = true;
    }
    first_trained += static_cast<int>(trained.size());
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
    hidden = model::dropout(hidden, embedding_dropout(plan),
                            model::dropout_key(frozen, place, model::DropoutSite::kEmbedding));
  }
  return undropped;
}

}  // namespace espalier::peft
