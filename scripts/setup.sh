#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, and nothing that is there: system packages, .venv from requirements.txt. Prints nothing when all is there.
#   ESPALIER_SYSTEM_PACKAGES=skip   leaves the system's packages alone: for systems without apt-get, and for libraries that came another
#                                   way. CMake then says which of them it does not find.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(build-essential cmake ninja-build ccache git libopenmpi-dev openmpi-bin libhdf5-dev
  libspdlog-dev libfmt-dev nlohmann-json3-dev libxxhash-dev libgtest-dev libgmock-dev libbenchmark-dev python3 python3-venv python3-dev)
# For scripts/check.sh alone, so nobody is asked for root because of it: it comes along when others are missing.
optional=(clang-format)

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

case "${ESPALIER_SYSTEM_PACKAGES:=install}" in
  install) ;;
  skip) packages=() ;;
  *)
    echo "setup: ESPALIER_SYSTEM_PACKAGES: expected install or skip, found $ESPALIER_SYSTEM_PACKAGES" >&2
    exit 2
    ;;
esac
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
# A tool that came another way counts as there.
still_missing=()
for package in "${missing[@]:-}"; do
  case "$package" in
    '') ;;
    cmake) command -v cmake >/dev/null || still_missing+=("$package") ;;
    ninja-build) command -v ninja >/dev/null || still_missing+=("$package") ;;
    git) command -v git >/dev/null || still_missing+=("$package") ;;
    *) still_missing+=("$package") ;;
  esac
done
if ((${#still_missing[@]})); then
  if ! command -v apt-get >/dev/null; then
    echo "setup: expected a Debian or Ubuntu system (apt-get), found none. Install the counterparts of: ${still_missing[*]}" >&2
    echo "  Then set ESPALIER_SYSTEM_PACKAGES=skip and call this again." >&2
    exit 2
  elif [ "$(id -u)" = 0 ]; then
    as_root=()
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo)
  elif command -v sudo >/dev/null && [ -t 0 ]; then
    as_root=(sudo)
  else
    echo "setup: these packages are missing and neither root nor sudo is at hand; have them installed, then call this again:" >&2
    echo "  apt-get install ${still_missing[*]}" >&2
    echo "  If they are there in another way, set ESPALIER_SYSTEM_PACKAGES=skip." >&2
    exit 2
  fi
  for package in "${optional[@]}"; do
    command -v "$package" >/dev/null || still_missing+=("$package")
  done
  say "Installing ${#still_missing[@]} system packages: ${still_missing[*]}"
  "${as_root[@]}" apt-get update -q >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${still_missing[@]}" >&2
fi

stamp=.venv/requirements.sha256
wanted=$(sha256sum requirements.txt | cut -d' ' -f1)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  python=.venv/bin/python
  [ -x "$python" ] || python=python3
  # The oldest that the pinned packages take (numpy, h5py, pillow, pyarrow).
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    found=$("$python" --version 2>/dev/null) || found=none
    echo "setup: expected Python 3.11 or later as $python, which requirements.txt needs, found $found" >&2
    echo "  Install a later one, make .venv with it (rm -rf .venv; python3.12 -m venv .venv), then call this again." >&2
    exit 2
  }
  say "Making .venv (LibTorch and Python tools, about 3 GB to fetch)"
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt >&2
  echo "$wanted" >"$stamp"
fi
