#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Layout independence on the quickstart's model with real processes: the steps with dropout on, on every layout, and half of them before a
# resume on another layout, give the same losses, trained tensors and moments bit for bit.
#   scripts/check_layouts.sh [--steps N] [method ...]      default: 20 steps of lst, lora and full
#   ESPALIER=<program>                                     default: build/release/bin/espalier
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/mpi_environment.sh
. scripts/mpi_environment.sh
espalier=${ESPALIER:-build/release/bin/espalier}
runs=run/layouts
steps=20
if [ "${1:-}" = --steps ]; then
  steps=$2
  shift 2
fi
[ $# -gt 0 ] || set -- lst lora full
rm -rf "$runs"
mkdir -p "$runs"

# The schedule ends one step later, so that no run pays for the evaluation that ends a whole one.
train() { # method folder layout last-step
  local method=$1 folder=$2 layout=$3 last_step=$4 code=0
  mpirun -np $((${layout%x*} * ${layout#*x})) "$espalier" train --config "configs/minilm_${method}_reviews.ini" \
    --run.folder="$runs/$folder" --data.micro_batch_size=8 --train.max_steps=$((steps + 1)) --train.stop_at_step="$last_step" \
    --train.evaluate_every_steps=$((2 * steps)) --checkpoint.every_steps=$((2 * steps)) --parallel.threads=1 \
    --parallel.stages="${layout%x*}" --parallel.replicas="${layout#*x}" >/dev/null 2>"$runs/$folder.log" || code=$?
  [ $code = 75 ] || { # stopped on request
    cat "$runs/$folder.log" >&2
    echo "check_layouts: $method on $layout: expected exit code 75 after step $last_step, found $code" >&2
    exit 1
  }
}

fingerprint() { # folder -> digest over the losses and the digests of all saved tensors
  .venv/bin/python - "$runs/$1" "$steps" <<'PYTHON'
import hashlib, json, pathlib, sys
run, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
losses = [record["loss"] for record in records if record["kind"] == "train"]
tensors = json.loads((run / f"checkpoints/step_{steps:08d}/manifest.json").read_text())["tensors"]
if len(losses) != steps or not tensors:
    sys.exit(f"check_layouts: {run}: expected {steps} losses and some tensors, found {len(losses)} and {len(tensors)}")
content = json.dumps([losses, sorted((name, entry["xxh3_128"]) for name, entry in tensors.items())])
print(hashlib.sha256(content.encode()).hexdigest()[:16])
PYTHON
}

status=0
for method in "$@"; do
  expected=
  for layout in 1x1 2x1 1x2 2x2 4x1 1x4 3x1 resumed; do
    if [ $layout = resumed ]; then
      train "$method" "$method-resumed" 2x1 $((steps / 2))
      train "$method" "$method-resumed" 1x4 "$steps"
    else
      train "$method" "$method-$layout" $layout "$steps"
    fi
    found=$(fingerprint "$method-$layout")
    expected=${expected:-$found}
    if [ "$found" = "$expected" ]; then
      echo "$method $layout: same bits ($found)"
    else
      echo "$method $layout: DIFFERENT bits: $found, expected $expected"
      status=1
    fi
  done
done
exit $status
