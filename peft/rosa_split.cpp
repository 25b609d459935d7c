// SPDX-License-Identifier: Apache-2.0
#include "peft/rosa_split.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <numeric>

#include "common/check.h"
#include "common/random.h"
#include "model/initial.h"

namespace espalier::peft {
namespace {

/// Names what a weight draws in one event.
std::string draw_name(std::string_view name, std::int64_t event) {
  return fmt::format("{}@{}", name, event);
}

}  // namespace

std::vector<std::int64_t> sample_subspace(const std::string& sampling, std::int64_t size, std::int64_t rank,
                                          std::uint64_t seed, std::int64_t event, std::string_view name) {
  ESPALIER_CHECK(0 < rank && rank < size, "a subspace of {} out of {} directions", rank, size);
  PhiloxSequence random(derive_key(seed, RandomDomain::kSubspace, draw_name(name, event)));
  std::vector<std::int64_t> chosen(static_cast<std::size_t>(rank));
  if (sampling == "uniform") {
    std::vector<std::int64_t> all(static_cast<std::size_t>(size));
    std::iota(all.begin(), all.end(), std::int64_t{0});
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      std::swap(all[i], all[i + random.next_below(all.size() - i)]);
      chosen[i] = all[i];
    }
    std::sort(chosen.begin(), chosen.end());
    return chosen;
  }
  ESPALIER_CHECK(sampling == "window" || sampling == "top" || sampling == "bottom", "sampling {}", sampling);
  const std::int64_t first =
      sampling == "top"      ? 0
      : sampling == "bottom" ? size - rank
                             : static_cast<std::int64_t>(random.next_below(static_cast<std::uint64_t>(size - rank)));
  std::iota(chosen.begin(), chosen.end(), first);
  return chosen;
}

at::Tensor merged_weight(const RosaParts& parts, at::ScalarType type) {
  const at::NoGradGuard no_grad;
  return at::addmm(parts.rest.to(type), parts.b.to(type), parts.a.to(type));
}

RosaParts split_weight(const at::Tensor& weight, const std::vector<std::int64_t>& subspace, const std::string& sigma,
                       at::ScalarType stored) {
  const at::NoGradGuard no_grad;
  const auto [u, s, vh] = at::linalg_svd(weight, /*full_matrices=*/false);  // [out, k], [k], [k, in]
  const at::Tensor index = at::tensor(subspace, at::kLong).to(weight.device());
  at::Tensor left = u.index_select(1, index);    // [out, R]
  at::Tensor right = vh.index_select(0, index);  // [R, in]
  // A pair of singular vectors is defined up to a common sign.
  const at::Tensor largest = right.gather(1, right.abs().argmax(1, /*keepdim=*/true));  // [R, 1]
  const at::Tensor sign = at::where(largest.lt(0), -1.0, 1.0).to(weight.scalar_type());
  const at::Tensor values = s.index_select(0, index);
  right = right * sign;
  left = left * sign.t();
  if (sigma == "both") {
    left = left * values.sqrt().unsqueeze(0);
    right = right * values.sqrt().unsqueeze(1);
  } else {
    right = right * values.unsqueeze(1);
  }
  // Of the rounded factors, so that rest + b a is the weight again to one rounding of the rest.
  const at::Tensor a = right.to(stored), b = left.to(stored);
  const at::Tensor rest =
      at::addmm(weight, b.to(weight.scalar_type()), a.to(weight.scalar_type()), /*beta=*/1, /*alpha=*/-1);
  return {rest.to(stored), a, b};
}

void resample(RosaParts& parts, const RosaConfig& config, std::uint64_t seed, std::int64_t event,
              std::string_view name) {
  const at::NoGradGuard no_grad;
  at::Tensor weight = merged_weight(parts, config.svd_type == "fp64" ? at::kDouble : at::kFloat);
  if (config.svd_device == "cpu") weight = weight.cpu();
  const auto fill = [](const at::Tensor& target, const at::Tensor& value) { target.detach().copy_(value); };
  if (config.split == "random_add") {
    fill(parts.rest, weight);
    fill(parts.a, at::zeros_like(parts.a));
    fill(parts.b, model::normal_by_name(parts.b.sizes(), /*deviation=*/1, seed, draw_name(name, event)));
    return;
  }
  const std::int64_t size = std::min(weight.size(0), weight.size(1));
  const auto subspace = sample_subspace(config.sampling, size, parts.a.size(0), seed, event, name);
  const RosaParts fresh = split_weight(weight, subspace, config.sigma, parts.rest.scalar_type());
  fill(parts.rest, config.split == "add" ? weight : fresh.rest);
  fill(parts.a, fresh.a);
  fill(parts.b, fresh.b);
}

}  // namespace espalier::peft
