// SPDX-License-Identifier: Apache-2.0
// The bottleneck of every adapter: scale Up(drop(act(Down(x)))), on request with a norm in front and its input added to
// its output. D width, R rank.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "peft/method.h"

namespace espalier::peft {

struct BottleneckSpec {
  enum class Start { kNormal, kTruncatedNormal, kUniform };
  std::int64_t width = 0, rank = 0;
  model::Activation activation = model::Activation::kGelu;
  double dropout = 0;         ///< on what the upper map reads
  bool has_norm = false;      ///< LayerNorm of its own in front
  bool has_residual = false;  ///< its input is added to its output (Houlsby et al., section 2.1)
  double norm_epsilon = 1e-5;
  double scale = 1;
  /// What the two matrices are drawn from, about 0 and with these deviations (of the normal before it is truncated at
  /// two of them); biases start at 0, the norm at the identity.
  Start start = Start::kNormal;
  double down_deviation = 0.02, up_deviation = 0.02;
};

/// 2 D R + R + D, and 2 D with a norm.
std::int64_t count_bottleneck(const BottleneckSpec& spec);

class Bottleneck final : public model::Insert {
 public:
  /// `place` and `site` tell its dropout apart from all others of the model. Its tensors are undefined until
  /// visit_weights() fills them.
  Bottleneck(const BottleneckSpec& spec, model::LayerPlace place, model::DropoutSite site);

  /// x [..., D] -> [..., D]
  [[nodiscard]] at::Tensor forward(const at::Tensor& x, const model::ForwardContext& context) const override;
  /// Roles: norm.{weight,bias} where it has one, down.{weight [R, D], bias}, up.{weight [D, R], bias}.
  void visit_weights(const model::WeightVisitor& visit);
  [[nodiscard]] const BottleneckSpec& spec() const { return spec_; }

 private:
  BottleneckSpec spec_;
  model::LayerPlace place_;
  model::DropoutSite site_;
  model::Norm norm_;
  model::Linear down_, up_;
};

/// Fills the bottleneck with trained tensors, drawn by name (`name` + "." + role), and appends them to `trained`.
void train_bottleneck(Bottleneck& bottleneck, const std::string& name, std::uint64_t seed, at::Device device,
                      std::vector<TrainedTensor>& trained);

}  // namespace espalier::peft
