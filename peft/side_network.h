// SPDX-License-Identifier: Apache-2.0
// A network that trains beside the frozen backbone: it reads what the backbone's layers put out and carries all
// gradients. The backbone is run by BesideMethod; a side network only says how it climbs along it.
// B rows, T tokens of the stack at hand, S tokens of the memory, D backbone width, H heads, C labels, V vocabulary
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/method.h"

namespace espalier::peft {

/// What the backbone shows of one layer, outside any graph.
struct Tap {
  const model::Layer& layer;
  /// Behind the layer: "hidden" [B, T, D], in a decoder "memory" [B, S, D], and "position_bias" [1, H, T, T] where
  /// blocks share one (with a cache [1, H, T, its tokens and T]). Above the last tap nothing but an embedding's
  /// "hidden" counts.
  const model::Carry& backbone;
  /// Of an embedding: its output before dropout [B, T, D], with that of images behind the text, which has a gradient
  /// and which the backbone does not read; otherwise undefined.
  at::Tensor undropped;
};

/// Entries of a side network's carry whose names begin so are made of the backbone's outputs alone and have no
/// gradient: networks that give one the same name share it.
inline constexpr std::string_view kSharedPrefix = "shared.";

class SideNetwork {
 public:
  virtual ~SideNetwork() = default;
  [[nodiscard]] virtual std::string_view name() const = 0;
  [[nodiscard]] virtual nlohmann::json describe_export() const = 0;
  /// Of this slice, in chain order; the task head's are the last.
  [[nodiscard]] virtual const std::vector<TrainedTensor>& trained() const = 0;

  /// Null for a network that starts without looking at the data.
  [[nodiscard]] virtual ImportanceStart* importance_start() { return nullptr; }

  /// Its own entries that enter the stage beginning with `first_layer`. Pure.
  [[nodiscard]] virtual model::CarryPlan plan_carry(int first_layer, const model::BatchShape& shape) const = 0;
  /// Chain index of the last layer whose output it reads: the backbone is not run above it. Embeddings always are.
  [[nodiscard]] virtual int last_tap_layer() const = 0;
  /// The backbone draws its own dropout in training.
  [[nodiscard]] virtual bool has_backbone_dropout() const = 0;

  /// Of the divergence from the backbone's own predictions in its loss. Above 0 it taps the last layer.
  [[nodiscard]] virtual double distill_weight() const { return 0; }

  /// Every slot that climb() reads, in an order that networks of one shape share. With stacks of K such networks'
  /// weights in the slots, [K, ...], climb() climbs for all of them: the states of `side` are [K, ...] then, but for
  /// those that are shared.
  virtual void visit_weights(const std::function<void(at::Tensor& slot)>& visit) = 0;

  /// What its layers read of a micro-batch, made of what the backbone's read.
  [[nodiscard]] virtual model::StageInputs adapt(const model::StageInputs& inputs) const = 0;
  /// Past layer `place` of the slice: replaces entries of `side`, its own carry, which on the first stage begins empty.
  /// `inputs` from adapt(). Requires: every layer of the slice but a head once, in ascending order, on the same `side`.
  virtual void climb(std::size_t place, const Tap& tap, const model::StageInputs& inputs,
                     const model::ForwardContext& context, model::Carry& side) const = 0;
  /// Logits at the end of the chain, [B, C] or [B, T, V], of the "hidden" in `side`, that of one network.
  /// `tap.backbone`: behind the layer below the head. `inputs`: the backbone's.
  [[nodiscard]] virtual at::Tensor read_out(const model::Layer& head, const Tap& tap, const model::StageInputs& inputs,
                                            const model::ForwardContext& context, const model::Carry& side) const = 0;
};

}  // namespace espalier::peft
