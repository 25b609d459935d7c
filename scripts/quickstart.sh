#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone to a fine-tuned model: sets up, builds, fetches a real backbone and real data, fine-tunes over 4 ranks (2 pipeline
# stages x 2 replicas) with LST, evaluates, exports the adapter and prints a table. What is there already is used again.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

scripts/setup.sh
# shellcheck source=scripts/mpi_environment.sh
. scripts/mpi_environment.sh

if [ ! -f build/release/build.ninja ]; then
  say "Configuring the release build"
  cmake --preset release >&2
fi
say "Building"
cmake --build --preset release --target espalier_program >&2

cache=.cache/quickstart
say "Backbone and data"
.venv/bin/python tools/fetch_quickstart.py "$cache" >&2
if [ ! -f "$cache/reviews.h5" ]; then
  .venv/bin/python tools/prepare.py --input "$cache/movieReviewSnippets_GroundTruth.txt" --format tsv --no-header \
    --id 0 --label 1 --text 2 --positive-above 0 --drop-within 0.25 --label-names negative,positive \
    --split-hash-prefix espalier-split: --split-column 0 --tokenizer "$cache/minilm" --max-length 64 --output "$cache/reviews.h5" >&2
fi

espalier=build/release/bin/espalier
if [ ! -f run/minilm_probe_reviews/summary.json ]; then
  say "Linear probe, for comparison (trained once)"
  rm -rf run/minilm_probe_reviews
  mpirun -np 2 "$espalier" train --config configs/minilm_probe_reviews.ini --parallel.stages=1 >/dev/null
fi

say "Fine-tuning with LST on 4 ranks: 2 pipeline stages x 2 replicas"
rm -rf run/minilm_lst_reviews
mpirun -np 4 "$espalier" train --config configs/minilm_lst_reviews.ini >/dev/null
say "Exporting the adapter"
rm -rf run/minilm_lst_reviews/exported
"$espalier" export --run run/minilm_lst_reviews --output run/minilm_lst_reviews/exported >/dev/null
.venv/bin/python tools/quickstart_table.py run/minilm_lst_reviews run/minilm_probe_reviews
