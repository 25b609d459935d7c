// SPDX-License-Identifier: Apache-2.0
// Loops on LibTorch's own threads.
#pragma once

#include <c10/util/FunctionRef.h>

#include <cstdint>

namespace espalier::model {

/// Calls body(begin, end) on contiguous ranges that together cover [0, count) once; counts below `grain` are not split.
/// Thread: body runs on several threads at once; it must not touch tensors, only their memory.
void parallel_ranges(std::int64_t count, std::int64_t grain,
                     c10::function_ref<void(std::int64_t begin, std::int64_t end)> body);

}  // namespace espalier::model
