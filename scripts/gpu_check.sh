#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# On a machine with an NVIDIA GPU and a CUDA toolkit: builds with CUDA, runs the `gpu` tests (NCCL conformance with several ranks on one
# GPU, agreement of CPU and GPU; none may be skipped) and prints throughput and peak bytes of LST, LoRA and full fine-tuning in fp32 and bf16.
# The quickstart's model and data must be there (scripts/quickstart.sh makes them).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/mpi_environment.sh
. scripts/mpi_environment.sh
nvidia-smi -L || {
  echo "gpu_check: expected an NVIDIA GPU, found none" >&2
  exit 2
}
cmake --preset cuda
cmake --build --preset cuda
ctest --preset cuda --no-tests=error -L gpu --output-on-failure | tee build/cuda/gpu_tests.log
! grep '(Skipped)$' build/cuda/gpu_tests.log || {
  echo "gpu_check: expected every GPU test to run, found the skipped ones above" >&2
  exit 1
}

espalier=build/cuda/bin/espalier
runs=run/gpu_check
rm -rf "$runs"
printf '\n%-6s %-5s %12s %12s %10s\n' method type samples/s "peak MiB" accuracy
for method in lst lora full; do
  for type in fp32 bf16; do
    "$espalier" train --config "configs/minilm_${method}_reviews.ini" --run.folder="$runs/$method-$type" --parallel.stages=1 \
      --data.micro_batch_size=0 --model.device=cuda --model.compute_type="$type" >/dev/null
    .venv/bin/python - "$runs/$method-$type/summary.json" "$method" "$type" <<'PYTHON'
import json, sys
summary = json.load(open(sys.argv[1]))
print(f"{sys.argv[2]:<6} {sys.argv[3]:<5} {summary['samples_per_second']:12.1f} {max(summary['peak_allocated_bytes']) / 2**20:12.1f} "
      f"{100 * summary['test']['accuracy']:9.1f}%")
PYTHON
  done
done
