#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a reviewer runs besides the tests: format, clang-tidy on all sources, and the unit tests under AddressSanitizer and UBSan.
# Usage: scripts/check.sh [format] [tidy] [asan]   (default: all)
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t sources < <(git ls-files '*.cpp' '*.h')
folders='^(common|dist|data|model|peft|optim|checkpoint|train|launch)/'

check_format() {
  clang-format --dry-run --Werror "${sources[@]}"
  echo "format: ${#sources[@]} files are clean"
}

check_tidy() {
  # clang cannot read gcc's precompiled header, so it gets a compile database without it.
  local database=build/tidy
  mkdir -p "$database"
  python3 - build/cpu/compile_commands.json "$database/compile_commands.json" <<'PYTHON'
import json, re, sys
entries = json.load(open(sys.argv[1]))
for entry in entries:
    entry["command"] = re.sub(r" -include \S+cmake_pch\.hxx| -Winvalid-pch| -fpch-preprocess|\S*ccache |\S*cmake -E env CCACHE\S* ", " ", entry["command"])
json.dump(entries, open(sys.argv[2], "w"))
PYTHON
  printf '%s\n' "${sources[@]}" | grep -E "$folders" | grep '\.cpp$' | grep -v nccl_communicator.cpp |
    xargs -P "$(nproc)" -n 1 clang-tidy -p "$database" --quiet 2>/dev/null
  echo "clang-tidy: clean"
}

check_asan() {
  cmake --preset asan >/dev/null
  cmake --build --preset asan
  # LibTorch and Open MPI keep some memory for the life of the process; leaks are looked for in our own code by the byte ledger.
  ASAN_OPTIONS=detect_leaks=0 ctest --preset asan -LE slow
}

[ $# -gt 0 ] || set -- format tidy asan
for check in "$@"; do
  "check_$check"
done
