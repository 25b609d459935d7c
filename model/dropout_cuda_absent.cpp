// SPDX-License-Identifier: Apache-2.0
// Stands in for dropout_cuda.cu in a build without a CUDA toolkit.
#include "common/error.h"
#include "model/dropout_cuda.h"

namespace espalier::model {

void dropout_on_cuda(const at::Tensor&, const at::Tensor&, const at::Tensor&, std::int64_t, const DropoutRule&) {
  throw ConfigError(
      "dropout: expected tensors on the CPU, found CUDA tensors in a build without CUDA; use --device cpu, or build "
      "with "
      "ESPALIER_CUDA=ON where a CUDA toolkit is installed");
}

}  // namespace espalier::model
