#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Layout independence on the quickstart's model with real processes: 20 steps with dropout on every layout, and 10 + 10 with a resume
# on another layout, give the same losses and the same adapter bit for bit. Usage: scripts/check_layouts.sh [method ...]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/mpi_environment.sh
. scripts/mpi_environment.sh
espalier=${ESPALIER:-build/release/bin/espalier}
runs=run/layouts
rm -rf "$runs"

train() { # method folder stages replicas options...
  local method=$1 folder=$2 stages=$3 replicas=$4
  shift 4
  mpirun -np $((stages * replicas)) "$espalier" train --config "configs/minilm_${method}_reviews.ini" --run.folder="$runs/$folder" \
    --data.micro_batch_size=8 --train.max_steps=20 --train.evaluate_every_steps=1000 --parallel.threads=1 \
    --parallel.stages="$stages" --parallel.replicas="$replicas" "$@" >/dev/null 2>"$runs/$folder.log" || [ $? = 75 ] || {
    cat "$runs/$folder.log" >&2
    exit 1
  }
}

fingerprint() { # folder -> digest of losses and adapter
  { grep -o '"loss":[^,]*' "$runs/$1/metrics.jsonl" | head -20; sha256sum <"$runs/$1/adapter/adapter.safetensors"; } | sha256sum | cut -c1-16
}

mkdir -p "$runs"
status=0
for method in "${@:-lst}"; do
  train "$method" "$method-1x1" 1 1
  expected=$(fingerprint "$method-1x1")
  for layout in 2x1 1x2 2x2 4x1 1x4 3x1; do
    train "$method" "$method-$layout" "${layout%x*}" "${layout#*x}"
  done
  train "$method" "$method-resumed" 2 1 --train.stop_at_step=10
  train "$method" "$method-resumed" 1 4
  for layout in 1x1 2x1 1x2 2x2 4x1 1x4 3x1 resumed; do
    found=$(fingerprint "$method-$layout")
    if [ "$found" = "$expected" ]; then
      echo "$method $layout: same bits ($found)"
    else
      echo "$method $layout: DIFFERENT bits: $found, expected $expected"
      status=1
    fi
  done
done
exit $status
