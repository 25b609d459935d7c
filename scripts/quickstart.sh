#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone to a fine-tuned model: sets up, builds, fetches a real backbone and real data, fine-tunes over 4 ranks (2 pipeline
# stages x 2 replicas) with LST, evaluates, exports the adapter and prints a table. What is there already is used again: an interrupted
# run goes on where it was saved last, one that has ended just has its table printed. Only run/quickstart_* are its own.
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
# Trains in a folder unless the run there has ended: the adapter is what training writes last, after a summary of its state.
train() { # folder ranks option ...
  local folder=$1 ranks=$2
  shift 2
  if [ -d "$folder/adapter" ] && grep -qs '"is_stopped": false' "$folder/summary.json"; then
    echo "$folder has ended already; remove it to train it anew" >&2
    return
  fi
  mpirun -np "$ranks" "$espalier" train --run.folder="$folder" "$@" >/dev/null
  rm -rf "$folder/exported"
}

say "Linear probe, for comparison"
train run/quickstart_probe 2 --config configs/minilm_probe_reviews.ini --parallel.stages=1
say "Fine-tuning with LST on 4 ranks: 2 pipeline stages x 2 replicas"
train run/quickstart_lst 4 --config configs/minilm_lst_reviews.ini
if [ ! -d run/quickstart_lst/exported ]; then
  say "Exporting the adapter"
  "$espalier" export --run run/quickstart_lst --output run/quickstart_lst/exported >/dev/null
fi
.venv/bin/python tools/quickstart_table.py run/quickstart_lst run/quickstart_probe
