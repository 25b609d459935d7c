#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up what is missing, builds the `cpu` preset and runs all tests but the slow ones. The tests that need a GPU are built too; this
# build has no CUDA parts, so they are skipped, and the last line counts them (scripts/gpu_check.sh runs them).
#   scripts/test.sh            all but the slow tests
#   scripts/test.sh --slow     the slow tests too
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
log=build/cpu/test.log
status=0
ctest --preset cpu -j "$(nproc)" --no-tests=error --output-on-failure "${exclude[@]}" "$@" | tee "$log" || status=$?
gpu_tests=$(ctest --preset cpu -L gpu -N | sed -n 's/^ *Test *#[0-9]*: //p')
count_gpu() { grep -cFx "$gpu_tests" || true; }
started=$(sed -n 's|^ *[0-9]*/[0-9]* Test *#[0-9]*: \([^ ]*\) .*|\1|p' "$log" | count_gpu)
skipped=$(sed -n 's/^.* - \(.*\) (Skipped)$/\1/p' "$log" | count_gpu)
left_out=$(($(grep -c . <<<"$gpu_tests") - started))
echo "GPU tests: $((started - skipped)) ran, $skipped skipped, $left_out not selected (scripts/gpu_check.sh runs them on a machine with a GPU)" >&2
exit $status
