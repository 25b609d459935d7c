// SPDX-License-Identifier: Apache-2.0
#include "peft/merge.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <utility>

#include "common/check.h"
#include "common/error.h"
#include "peft/lora.h"
#include "peft/rosa.h"

namespace espalier::peft {
namespace {

void refuse_unmergeable(std::string_view method) {
  static const std::map<std::string, std::string, std::less<>> reasons = {
      {"lst", "its side network reads the outputs of the backbone's blocks"},
      {"last", "its modules of attention read the outputs of the backbone's blocks"},
      {"adapter", "its bottlenecks have an activation inside, which no matrix equals"},
      {"prompt", "its vectors stand in front of the words, where no weight is"},
      {"meft", "its blocks run on two streams with bottlenecks inside"}};
  if (const auto reason = reasons.find(method); reason != reasons.end()) {
    throw ConfigError(
        fmt::format("peft.method={}: cannot be merged into the weights, since {}; export it in the format "
                    "espalier, which tools/espalier_hf attaches to transformers",
                    method, reason->second));
  }
}

/// What the delta adds to its linear's weight.
at::Tensor product_of(const model::LinearDelta& delta) {
  if (const auto* lora = dynamic_cast<const LoraDelta*>(&delta)) {
    return lora->b.mm(lora->a).mul(lora->scale);
  }
  const auto* rosa = dynamic_cast<const RosaDelta*>(&delta);
  ESPALIER_CHECK(rosa != nullptr, "a delta that has no product");
  return rosa->own_b().mm(rosa->a);
}

}  // namespace

std::map<std::string, at::Tensor> merged_weights(Method& method, model::StageSlice& slice) {
  refuse_unmergeable(method.name());
  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> merged;
  const auto kept = method.kept_tensors();
  for (const auto& layer : slice.layers()) {
    const std::string& name = layer->plan().name;
    layer->visit_weights([&](const std::string& role, at::Tensor& slot, const std::vector<std::int64_t>& /*shape*/) {
      std::string full_name = fmt::format("{}.{}", name, role);
      if (slot.defined() && (slot.requires_grad() || kept.contains(full_name))) {
        merged.emplace(std::move(full_name), slot.detach().to(at::kFloat));
      }
    });
    layer->visit_linears([&](const std::string& role, model::Linear& linear) {
      if (linear.delta) {
        merged.insert_or_assign(fmt::format("{}.{}.weight", name, role),
                                linear.weight.to(at::kFloat) + product_of(*linear.delta));
      }
    });
  }
  return merged;
}

}  // namespace espalier::peft
