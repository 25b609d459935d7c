#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a reviewer runs besides the tests: format, clang-tidy on all sources, and the unit tests under AddressSanitizer and UBSan.
# Usage: scripts/check.sh [format] [tidy] [asan] [path ...]   (default: all three; paths narrow format and tidy)
# Exits 1 with the list of findings when there are any, 2 for a word that names nothing or a tool that is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
checks=()
paths=()
for word in "$@"; do
  case $word in
    format | tidy | asan) checks+=("$word") ;;
    *) paths+=("$word") ;;
  esac
done
[ ${#checks[@]} -gt 0 ] || checks=(format tidy asan)
for path in "${paths[@]}"; do
  git ls-files --error-unmatch -- "$path" >/dev/null 2>&1 || {
    echo "check: expected format, tidy, asan, or a path that git knows, found $path" >&2
    exit 2
  }
done
mapfile -t sources < <(git ls-files -- "${paths[@]:-.}" | grep -E '\.(cpp|h|cu)$')
[ ${#sources[@]} -gt 0 ] || {
  echo "check: expected C++ sources that git knows (*.cpp, *.h, *.cu), found none in: ${paths[*]:-.}" >&2
  exit 2
}
for check in "${checks[@]}"; do
  case $check in
    format | tidy)
      command -v "clang-$check" >/dev/null || {
        echo "check: expected clang-$check, found none; install it (Debian, Ubuntu: apt-get install clang-$check)" >&2
        exit 2
      }
      ;;
  esac
done

check_format() {
  clang-format --dry-run --Werror "${sources[@]}"
  echo "format: ${#sources[@]} files are clean"
}

# clang-tidy takes a minute for the headers of ATen whatever it reads after them, so each folder is one unit that includes its sources.
# Two names of one folder that live in anonymous namespaces must differ for that.
check_tidy() {
  local units=build/tidy
  [ -f build/debug/compile_commands.json ] || cmake --preset debug >/dev/null  # the one preset that names each source
  rm -rf "$units"
  mkdir -p "$units"
  # clang cannot read gcc's precompiled header, so it goes without. Sources of parts that this build leaves out (CUDA, NCCL) are not read.
  python3 - build/debug/compile_commands.json "$units" "${sources[@]}" <<'PYTHON'
import json, os, re, shlex, sys
database, units, sources = sys.argv[1], os.path.abspath(sys.argv[2]), set(sys.argv[3:])
layer = re.compile(r"(common|dist|data|model|peft|optim|checkpoint|train|launch)/.*\.cpp$")
folders = {}
for entry in json.load(open(database)):
    name = os.path.relpath(entry["file"])
    if name in sources and (found := layer.match(name)):
        folders.setdefault(found[1], {})[name] = shlex.split(entry["command"])
if not folders:
    print("tidy: expected a source of a layer (common/ ... launch/, *.cpp) among the paths, found none", file=sys.stderr)
    sys.exit(2)
entries = []
for folder, commands in sorted(folders.items()):
    unit = f"{units}/{folder}.cpp"
    with open(unit, "w") as text:
        text.writelines(f'#include "{name}"  // NOLINT(bugprone-suspicious-include)\n' for name in sorted(commands))
    flags = {}  # what any of the sources is compiled with, once, in order
    for words in commands.values():
        for before, word in zip(words, words[1:]):
            if before == "-isystem" or word.startswith(("-D", "-I", "-W", "-std")) and "pch" not in word:
                flags["-isystem" + word if before == "-isystem" else word] = None
    entries.append({"directory": os.getcwd(), "file": unit, "arguments": ["c++", *flags, "-c", unit]})
json.dump(entries, open(f"{units}/compile_commands.json", "w"))
PYTHON
  # shellcheck disable=SC2016  # $1 belongs to the inner shell
  if ! find "$units" -name '*.cpp' | sort | nice -n 10 xargs -r -P 2 -n 1 sh -c 'clang-tidy -p build/tidy --quiet "$1" >"$1.found" 2>&1' tidy; then
    # A finding in a header shows in every unit that includes it.
    sed -n "s|^$PWD/||; /^[^ ]*:[0-9]*:[0-9]*: \(warning\|error\)/p; /^error:/p" "$units"/*.found | sort -u >"$units/findings"
    cat "$units/findings"
    echo "clang-tidy: $(wc -l <"$units/findings") findings; all it said is in $units/*.found" >&2
    return 1
  fi
  echo "clang-tidy: $(cat "$units"/*.cpp | wc -l) sources are clean"
}

check_asan() {
  cmake --preset asan >/dev/null
  nice -n 10 cmake --build --preset asan
  # LibTorch and Open MPI keep some memory for the life of the process; leaks are looked for in our own code by the byte ledger.
  ASAN_OPTIONS=detect_leaks=0 nice -n 10 ctest --preset asan --no-tests=error -LE slow
}

for check in "${checks[@]}"; do
  "check_$check"
done
