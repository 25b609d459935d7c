// SPDX-License-Identifier: Apache-2.0
#include "peft/meft_block.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "common/error.h"
#include "model/block_layer.h"

namespace espalier::peft {
namespace {

struct AdapterPlace {
  const char* name;
  model::DropoutSite site;
};

AdapterPlace place_of(MeftAdapter adapter) {
  switch (adapter) {
    case MeftAdapter::kReversible:
      return {"rev_adapter", model::DropoutSite::kReversibleAdapter};
    case MeftAdapter::kFeedForward:
      return {"ffn_adapter", model::DropoutSite::kFeedForwardAdapter};
    case MeftAdapter::kAttention:
      return {"attn_adapter", model::DropoutSite::kAttentionAdapter};
  }
  throw InternalError("place_of: unknown adapter");
}

}  // namespace

GradientSink TrainedRange::sink_into(const GradientSink& sink) const {
  return [this, &sink](int index, at::Tensor gradient) { sink(first + index, std::move(gradient)); };
}

MeftBlock::MeftBlock(const MeftConfig& config, const MeftPlan& plan, const model::StageSlice& slice,
                     model::Layer& layer, const std::vector<TrainedTensor>& factors, std::uint64_t seed,
                     std::vector<TrainedTensor>& trained)
    : variant_(plan.variant), compute_type_(slice.options().compute_type), layer_(layer) {
  auto half = Half::kF;
  for (const MeftAdapter adapter : meft_adapters(plan)) {
    const AdapterPlace place = place_of(adapter);
    const auto spec = meft_bottleneck(config, slice.backbone(), layer.block()->spec(), adapter);
    auto bottleneck =
        std::make_shared<Bottleneck>(spec, model::LayerPlace{RandomDomain::kAdapter, layer.plan().index}, place.site);
    TrainedRange& range = half == Half::kF ? f_trained_ : g_trained_;
    range.first = static_cast<int>(trained.size());
    train_bottleneck(*bottleneck, layer.plan().name + "." + place.name, seed, slice.options().device, trained);
    std::copy_if(factors.begin(), factors.end(), std::back_inserter(trained),
                 [&](const TrainedTensor& factor) { return half_of(factor.name) == half; });
    range.tensors.assign(trained.begin() + range.first, trained.end());
    half = Half::kG;
    if (adapter == MeftAdapter::kReversible) {
      between_ = std::move(bottleneck);
    } else {
      layer.block()->set_insert(adapter == MeftAdapter::kAttention ? model::InsertPlace::kAfterAttention
                                                                   : model::InsertPlace::kParallelToFeedForward,
                                std::move(bottleneck));
    }
  }
}

MeftBlock::Half MeftBlock::half_of(const std::string& name) const {
  if (variant_ != 3) return variant_ == 1 ? Half::kF : Half::kG;
  return name.starts_with(layer_.plan().name + ".feed_forward.") ? Half::kG : Half::kF;
}

at::Tensor MeftBlock::run(Half half, const at::Tensor& x, Surroundings& surroundings) const {
  const at::Tensor input = x.to(compute_type_);
  const auto& [carry, inputs, context] = surroundings;
  if (is_whole_block(half)) {
    model::Carry local = carry;
    local["hidden"] = input;
    layer_.forward(local, inputs, context);
    if (const auto bias = local.find("position_bias"); bias != local.end()) {
      surroundings.carry["position_bias"] = bias->second;
    }
    return local.at("hidden").to(x.scalar_type());
  }
  if (between_) return between_->forward(input, context).to(x.scalar_type());
  const auto& block = *layer_.block();
  const at::Tensor y = half == Half::kF
                           ? block.attention_part(input, model::block_inputs(layer_.plan(), carry, inputs), context)
                           : block.feed_forward_part(input, context);
  return y.to(x.scalar_type());
}

MeftBlock::Traced MeftBlock::trace(Half half, const at::Tensor& x, bool needs_input_gradient,
                                   bool needs_memory_gradient, Surroundings& surroundings) const {
  const at::AutoGradMode with_gradient(true);
  model::Carry leaves;
  at::Tensor input = x.detach();
  if (needs_input_gradient) leaves.emplace("hidden", input.requires_grad_());
  const auto memory = surroundings.carry.find("memory");
  const bool is_leaf = needs_memory_gradient && is_whole_block(half) && memory != surroundings.carry.end();
  if (is_leaf) {
    // A leaf for each block: their gradients are then summed in the order of the blocks, wherever the chain is cut.
    memory->second = memory->second.detach().requires_grad_();
    leaves.emplace("memory", memory->second);
  }
  at::Tensor y = run(half, input, surroundings);
  if (is_leaf) memory->second = memory->second.detach();
  Traced traced;
  traced.value = y.detach();
  traced.graph =
      std::make_unique<AutogradPass>(std::move(leaves), model::Carry{{"value", std::move(y)}}, trained(half).tensors);
  return traced;
}

}  // namespace espalier::peft
