// SPDX-License-Identifier: Apache-2.0
// at::parallel_for is a header template that silently runs serially unless its caller is compiled with OpenMP, and an
// OpenMP runtime of our own beside LibTorch's would fight it for the cores. TensorIterator's loop is compiled inside
// LibTorch, so it is borrowed: one byte of a scratch tensor stands for one task.
#include "model/parallel.h"

#include <ATen/ATen.h>
#include <ATen/TensorIterator.h>

#include "common/check.h"

namespace espalier::model {

void parallel_ranges(std::int64_t count, std::int64_t grain,
                     c10::function_ref<void(std::int64_t begin, std::int64_t end)> body) {
  if (count <= 0) {
    return;
  }
  const at::Tensor tasks = at::empty({count}, at::kByte);
  const char* base = static_cast<const char*>(tasks.data_ptr());
  auto iterator = at::TensorIterator::borrowing_nullary_op(tasks);
  const auto run = [&](char** data, const std::int64_t*, std::int64_t size, std::int64_t outer_size) {
    ESPALIER_CHECK(outer_size == 1, "one contiguous dimension was split in two");
    const std::int64_t begin = *data - base;
    body(begin, begin + size);
  };
  iterator.for_each(run, grain);
}

}  // namespace espalier::model
