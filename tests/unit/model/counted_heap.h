// SPDX-License-Identifier: Apache-2.0
// Counts what operator new hands out on this thread: proof that a hostile file cannot make its reader allocate.
#pragma once

#include <cstdint>

namespace espalier::test {

/// Bytes that were live at the worst moment since construction, beyond those live then. One at a time per thread.
class HeapPeak {
 public:
  HeapPeak();
  [[nodiscard]] std::int64_t bytes() const;

 private:
  std::int64_t live_before_;
};

}  // namespace espalier::test
