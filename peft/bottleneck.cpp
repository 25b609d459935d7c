// SPDX-License-Identifier: Apache-2.0
#include "peft/bottleneck.h"

#include <ATen/ATen.h>

#include <cmath>

#include "common/error.h"
#include "model/dropout.h"
#include "model/initial.h"
#include "peft/trained_set.h"

namespace espalier::peft {
namespace {

at::Tensor draw(BottleneckSpec::Start start, const std::vector<std::int64_t>& shape, double deviation,
                std::uint64_t seed, const std::string& name) {
  switch (start) {
    case BottleneckSpec::Start::kNormal:
      return model::normal_by_name(shape, deviation, seed, name);
    case BottleneckSpec::Start::kTruncatedNormal:
      return model::truncated_normal_by_name(shape, deviation, seed, name);
    case BottleneckSpec::Start::kUniform:
      return model::uniform_by_name(shape, std::sqrt(3.0) * deviation, seed, name);
  }
  throw InternalError("draw: unknown start");
}

}  // namespace

std::int64_t count_bottleneck(const BottleneckSpec& spec) {
  return 2 * spec.width * spec.rank + spec.rank + spec.width + (spec.has_norm ? 2 * spec.width : 0);
}

Bottleneck::Bottleneck(const BottleneckSpec& spec, model::LayerPlace place, model::DropoutSite site)
    : spec_(spec),
      place_(place),
      site_(site),
      norm_{model::NormKind::kLayerNorm, spec.norm_epsilon, spec.width, {}, {}},
      down_(spec.width, spec.rank, /*bias_wanted=*/true),
      up_(spec.rank, spec.width, /*bias_wanted=*/true) {}

at::Tensor Bottleneck::forward(const at::Tensor& x, const model::ForwardContext& context) const {
  const at::Tensor read = spec_.has_norm ? norm_.forward(x) : x;
  at::Tensor narrow = model::activate(down_.forward(read, context), spec_.activation);  // [..., R]
  if (context.is_training && spec_.dropout > 0) {
    narrow = model::dropout(narrow, spec_.dropout, model::dropout_key(context, place_, site_));
  }
  at::Tensor wide = up_.forward(narrow, context);  // [..., D]
  if (spec_.scale != 1) wide = wide * spec_.scale;
  return spec_.has_residual ? x + wide : wide;
}

void Bottleneck::visit_weights(const model::WeightVisitor& visit) {
  if (spec_.has_norm) {
    model::visit_weights("norm", norm_, visit);
  }
  model::visit_weights("down", down_, visit);
  model::visit_weights("up", up_, visit);
}

void train_bottleneck(Bottleneck& bottleneck, const std::string& name, std::uint64_t seed, at::Device device,
                      std::vector<TrainedTensor>& trained) {
  const BottleneckSpec& spec = bottleneck.spec();
  bottleneck.visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& shape) {
    const std::string full = name + "." + role;
    at::Tensor start = at::zeros(shape);
    if (role == "norm.weight") {
      start.fill_(1);
    } else if (role == "down.weight" || role == "up.weight") {
      const double deviation = role == "down.weight" ? spec.down_deviation : spec.up_deviation;
      start = draw(spec.start, shape, deviation, seed, full);
    }
    trained.push_back(make_trained(full, start, device));
    slot = trained.back().value;
  });
}

}  // namespace espalier::peft
