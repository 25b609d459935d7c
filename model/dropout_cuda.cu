// SPDX-License-Identifier: Apache-2.0
// Dropout on CUDA. One thread per Philox counter: its four words decide on four elements that lie 64 apart, so that a
// warp reads and writes neighbouring elements. Multiplication and addition are rounded apart, as on the CPU.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "model/dropout_cuda.h"

namespace espalier::model {
namespace {

__device__ float scaled(float x, float scale) {
  return __fmul_rn(x, scale);
}
__device__ double scaled(double x, float scale) {
  return __dmul_rn(x, scale);
}
__device__ float sum(float a, float b) {
  return __fadd_rn(a, b);
}
__device__ double sum(double a, double b) {
  return __dadd_rn(a, b);
}

template <typename T>
struct ComputeType {
  using Type = float;
};
template <>
struct ComputeType<double> {
  using Type = double;
};

template <typename T>
__global__ void dropout_kernel(const T* x, const T* residual, T* y, std::int64_t numel, std::int64_t first_element,
                               std::int64_t first_counter, DropoutRule rule) {
  using Compute = typename ComputeType<T>::Type;
  const std::int64_t counter = first_counter + std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const DropoutWords words = draw_dropout_words(rule.key, static_cast<std::uint64_t>(counter));
  const std::int64_t block = counter / kDropoutCounters, lane = counter % kDropoutCounters;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const std::int64_t i = block * kDropoutBlock + w * kDropoutCounters + lane - first_element;
    if (i >= 0 && i < numel) {
      Compute value = words.word[w] >= rule.threshold ? scaled(static_cast<Compute>(x[i]), rule.scale) : Compute{0};
      if (residual != nullptr) {
        value = sum(static_cast<Compute>(residual[i]), value);
      }
      y[i] = static_cast<T>(value);
    }
  }
}

}  // namespace

void dropout_on_cuda(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& y, std::int64_t first_element,
                     const DropoutRule& rule) {
  const std::int64_t numel = x.numel();
  if (numel == 0) {
    return;
  }
  const c10::cuda::CUDAGuard guard(x.device());
  constexpr std::int64_t kThreads = 256;
  const std::int64_t first_block = first_element / kDropoutBlock;
  const std::int64_t end_block = (first_element + numel + kDropoutBlock - 1) / kDropoutBlock;
  // 256 threads are the 64 counters of 4 blocks
  const auto num_launched = static_cast<unsigned>((end_block - first_block + 3) / 4);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "dropout", [&] {
    dropout_kernel<scalar_t><<<num_launched, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        x.const_data_ptr<scalar_t>(), residual.defined() ? residual.const_data_ptr<scalar_t>() : nullptr,
        y.mutable_data_ptr<scalar_t>(), numel, first_element, first_block * kDropoutCounters, rule);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

}  // namespace espalier::model
