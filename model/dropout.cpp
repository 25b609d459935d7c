// SPDX-License-Identifier: Apache-2.0
#include "model/dropout.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <type_traits>
#include <vector>

#include "common/check.h"
#include "common/random.h"
#include "model/dropout_cuda.h"
#include "model/dropout_kernel.h"
#include "model/parallel.h"

namespace espalier::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Selecting by bits rather than by a product: a dropped infinity is 0, and no compiler can fuse the product with the
// sum that follows, which would make the result depend on the instruction set.
ESPALIER_HOST_DEVICE float masked(float value, std::uint32_t keep) {
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) & keep);
}
ESPALIER_HOST_DEVICE double masked(double value, std::uint32_t keep) {
  const auto wide = static_cast<std::uint64_t>(static_cast<std::int64_t>(static_cast<std::int32_t>(keep)));
  return std::bit_cast<double>(std::bit_cast<std::uint64_t>(value) & wide);
}

template <typename T>
ESPALIER_TARGET_CLONES void apply_mask(const T* x, const T* residual, T* y, std::int64_t numel, float scale,
                                       const std::uint32_t* keep) {
  using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;
  if (residual == nullptr) {
    for (std::int64_t i = 0; i < numel; ++i) {
      y[i] = static_cast<T>(masked(static_cast<Compute>(x[i]) * static_cast<Compute>(scale), keep[i]));
    }
  } else {
    for (std::int64_t i = 0; i < numel; ++i) {
      y[i] = static_cast<T>(static_cast<Compute>(residual[i]) +
                            masked(static_cast<Compute>(x[i]) * static_cast<Compute>(scale), keep[i]));
    }
  }
}

void dropout_on_cpu(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& y, std::int64_t first_element,
                    const DropoutRule& rule) {
  const std::int64_t end_element = first_element + x.numel();
  const std::int64_t first_block = first_element / kDropoutBlock;
  const std::int64_t end_block = (end_element + kDropoutBlock - 1) / kDropoutBlock;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "dropout", [&] {
    const auto* from = x.const_data_ptr<scalar_t>();
    const auto* add = residual.defined() ? residual.const_data_ptr<scalar_t>() : nullptr;
    auto* to = y.mutable_data_ptr<scalar_t>();
    // 32 blocks take about as long as starting a thread
    parallel_ranges(end_block - first_block, /*grain=*/32, [&](std::int64_t begin, std::int64_t end) {
      alignas(64) std::uint32_t keep[kDropoutBlock];
      for (std::int64_t block = first_block + begin; block < first_block + end; ++block) {
        draw_dropout_blocks(rule, block, 1, keep);
        const std::int64_t low = std::max(first_element, block * kDropoutBlock);
        const std::int64_t high = std::min(end_element, (block + 1) * kDropoutBlock);
        const std::int64_t i = low - first_element;
        apply_mask(from + i, add != nullptr ? add + i : nullptr, to + i, high - low, rule.scale,
                   keep + low % kDropoutBlock);
      }
    });
  });
}

at::Tensor run_dropout(const at::Tensor& x, const at::Tensor& residual, double probability, std::uint64_t key,
                       std::int64_t first_element) {
  const at::Tensor dense_x = x.contiguous();
  const at::Tensor dense_residual = residual.defined() ? residual.contiguous() : residual;
  at::Tensor y = at::empty_like(dense_x);
  const DropoutRule rule = make_dropout_rule(probability, key);
  if (x.is_cuda()) {
    dropout_on_cuda(dense_x, dense_residual, y, first_element, rule);
  } else {
    dropout_on_cpu(dense_x, dense_residual, y, first_element, rule);
  }
  return y;
}

class DropoutFunction : public torch::autograd::Function<DropoutFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const std::optional<at::Tensor>& residual,
                            double probability, std::int64_t key, std::int64_t first_element) {
    ctx->saved_data["has_residual"] = residual.has_value();
    ctx->saved_data["probability"] = probability;
    ctx->saved_data["key"] = key;
    ctx->saved_data["first_element"] = first_element;
    return run_dropout(x, residual.value_or(at::Tensor()), probability, static_cast<std::uint64_t>(key), first_element);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    at::Tensor grad_x;
    if (ctx->needs_input_grad(0)) {
      grad_x =
          dropout(grads[0], ctx->saved_data["probability"].toDouble(),
                  static_cast<std::uint64_t>(ctx->saved_data["key"].toInt()), ctx->saved_data["first_element"].toInt());
    }
    return {grad_x, ctx->saved_data["has_residual"].toBool() ? grads[0] : at::Tensor(), {}, {}, {}};
  }
};

void check_probability(double probability) {
  ESPALIER_CHECK(probability >= 0 && probability < 1, "dropout: expected 0 <= probability < 1, found {}", probability);
}

}  // namespace

at::Tensor dropout(const at::Tensor& x, double probability, std::uint64_t key, std::int64_t first_element) {
  check_probability(probability);
  ESPALIER_CHECK(first_element >= 0);
  if (probability == 0) {
    return x;
  }
  return DropoutFunction::apply(x, std::optional<at::Tensor>(), probability, static_cast<std::int64_t>(key),
                                first_element);
}

at::Tensor dropout_add(const at::Tensor& x, const at::Tensor& residual, double probability, std::uint64_t key) {
  check_probability(probability);
  ESPALIER_CHECK(x.sizes() == residual.sizes() && x.scalar_type() == residual.scalar_type(),
                 "dropout_add: x and residual must have one shape and dtype");
  if (probability == 0) {
    return x + residual;
  }
  return DropoutFunction::apply(x, std::optional<at::Tensor>(residual), probability, static_cast<std::int64_t>(key),
                                std::int64_t{0});
}

at::Tensor dropout(const at::Tensor& x, double probability, const ForwardContext& context, const LayerPlace& place,
                   DropoutSite site) {
  const auto keys = dropout_keys(context, place, site);
  if (context.seeds.empty() || probability == 0) {
    return dropout(x, probability, keys.front());
  }
  const auto states = x.dim() == 3 ? std::vector<at::Tensor>(keys.size(), x) : x.unbind(0);
  std::vector<at::Tensor> dropped;
  for (std::size_t k = 0; k < keys.size(); ++k) {
    dropped.push_back(dropout(states[k], probability, keys[k]));
  }
  return at::stack(dropped);
}

at::Tensor dropout_add(const at::Tensor& x, const at::Tensor& residual, double probability,
                       const ForwardContext& context, const LayerPlace& place, DropoutSite site) {
  return context.seeds.empty() || probability == 0
             ? dropout_add(x, residual, probability, dropout_key(context, place, site))
             : residual + dropout(x, probability, context, place, site);
}

at::Tensor dropout_mask(std::int64_t numel, double probability, std::uint64_t key) {
  check_probability(probability);
  at::Tensor mask = at::empty({numel}, at::kByte);
  auto* out = mask.mutable_data_ptr<std::uint8_t>();
  const std::uint32_t threshold = make_dropout_rule(probability, key).threshold;
  for (std::int64_t i = 0; i < numel; ++i) {
    const std::int64_t word = i % kDropoutBlock / kDropoutCounters;
    const std::int64_t counter = i / kDropoutBlock * kDropoutCounters + i % kDropoutCounters;
    out[i] = philox4x32(key, static_cast<std::uint64_t>(counter))[static_cast<std::size_t>(word)] >= threshold ? 1 : 0;
  }
  return mask;
}

}  // namespace espalier::model
