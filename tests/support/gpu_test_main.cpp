// SPDX-License-Identifier: Apache-2.0
// main() of tests labelled `gpu` that need no mpirun: without a device, or in a build without CUDA parts, the program
// exits 77, which ctest counts as skipped.
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <iostream>

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!at::hasCUDA()) {
    std::cerr << "skipped: no CUDA device, or a build without CUDA" << std::endl;
    return 77;
  }
  return RUN_ALL_TESTS();
}
