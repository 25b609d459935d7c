// SPDX-License-Identifier: Apache-2.0
// The CUDA side of dropout: the same bits as the CPU. Defined in dropout_cuda.cu, or, without a toolkit, in
// dropout_cuda_absent.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/dropout_kernel.h"

namespace espalier::model {

/// y = dropout(x) + residual (where defined); element 0 of x has index `first_element`. All contiguous, on one CUDA
/// device. Stream: the current one. Throws: ConfigError in a build without CUDA.
void dropout_on_cuda(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& y, std::int64_t first_element,
                     const DropoutRule& rule);

}  // namespace espalier::model
