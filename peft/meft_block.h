// SPDX-License-Identifier: Apache-2.0
// One block between the streams: F and G, which read one stream each, with the adapters that train in them.
// B batch, T tokens, D width
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "peft/autograd_pass.h"
#include "peft/meft_plan.h"
#include "peft/method.h"

namespace espalier::peft {

/// A run of trained() of the method.
struct TrainedRange {
  int first = 0;  ///< index of the first in trained()
  std::vector<TrainedTensor> tensors;
  /// Receives the gradients of `tensors` in the place of trained().
  [[nodiscard]] GradientSink sink_into(const GradientSink& sink) const;
};

class MeftBlock {
 public:
  enum class Half { kF, kG };
  /// What a half reads besides its stream: "memory" and "position_bias", and the micro-batch.
  struct Surroundings {
    model::Carry carry;
    model::StageInputs inputs;
    model::ForwardContext context;
  };
  /// A half with a graph of its own.
  struct Traced {
    at::Tensor value;                     ///< [B, T, D], detached
    std::unique_ptr<AutogradPass> graph;  ///< from "hidden" and "memory", where asked for, to "value"
  };

  /// Draws the adapters by name, puts those that stand inside the block into `layer`, and appends all that trains to
  /// `trained`: half by half its adapter, then those of `factors`, which stand on linears of the block already.
  MeftBlock(const MeftConfig& config, const MeftPlan& plan, const model::StageSlice& slice, model::Layer& layer,
            const std::vector<TrainedTensor>& factors, std::uint64_t seed, std::vector<TrainedTensor>& trained);

  /// F or G of `x`, real numbers [B, T, D], in the type of x. The block that makes a position bias puts it into the
  /// carry.
  [[nodiscard]] at::Tensor run(Half half, const at::Tensor& x, Surroundings& surroundings) const;
  /// The same from leaves. "hidden" is one where `needs_input_gradient`, "memory" where `needs_memory_gradient` and the
  /// half reads it.
  [[nodiscard]] Traced trace(Half half, const at::Tensor& x, bool needs_input_gradient, bool needs_memory_gradient,
                             Surroundings& surroundings) const;
  [[nodiscard]] const TrainedRange& trained(Half half) const { return half == Half::kF ? f_trained_ : g_trained_; }
  [[nodiscard]] const model::LayerPlan& place() const { return layer_.plan(); }

 private:
  /// The half that a linear of the block belongs to, by the name of a tensor on it.
  [[nodiscard]] Half half_of(const std::string& name) const;
  [[nodiscard]] bool is_whole_block(Half half) const { return variant_ == (half == Half::kF ? 1 : 2); }

  std::int64_t variant_;
  at::ScalarType compute_type_;
  model::Layer& layer_;
  std::shared_ptr<Bottleneck> between_;  ///< the adapter that is a half by itself; null in MEFT3
  TrainedRange f_trained_, g_trained_;
};

}  // namespace espalier::peft
