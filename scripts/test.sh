#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up what is missing, builds, and runs every test that a machine without a GPU can run. GPU tests are not part of the CPU build, which is said.
#   scripts/test.sh            all but the slow set
#   scripts/test.sh --slow     the slow set too
#   further words go to ctest, e.g. scripts/test.sh -L unit
set -euo pipefail
cd "$(dirname "$0")/.."
exclude=(-LE slow)
if [ "${1:-}" = --slow ]; then
  exclude=()
  shift
fi
scripts/setup.sh
cmake --preset cpu >/dev/null
cmake --build --preset cpu
echo "GPU tests: none run; they are not in the CPU build (scripts/gpu_check.sh builds and runs them)" >&2
ctest --preset cpu --output-on-failure "${exclude[@]}" "$@"
