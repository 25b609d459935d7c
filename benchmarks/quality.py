# SPDX-License-Identifier: Apache-2.0
"""Accuracy of every method on the quickstart's data over several seeds, from the files in configs/.

A run that has ended is kept and not made again, so the script can be stopped and called anew.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# name -> (which file in configs/, further options)
METHODS = {
    **{name: (name, []) for name in ("full", "lora", "rosa", "adapter", "bitfit", "prompt", "lst", "last", "meft", "probe")},
    "meft_64": ("meft", ["--peft.meft.rank=64"]),
}


def run(method: str, seed: int, arguments: argparse.Namespace) -> dict:
    """Summary of one run on one rank, with its median seconds per step; trains it if it has not ended yet."""
    folder = arguments.folder / f"{method}_{seed}"
    summary = folder / "summary.json"
    if not summary.exists() or json.loads(summary.read_text())["is_stopped"]:
        config, options = METHODS[method]
        command = [str(arguments.espalier), "train", "--config", f"configs/minilm_{config}_reviews.ini", f"--run.folder={folder}",
                   f"--train.seed={seed}", "--parallel.stages=1", f"--parallel.threads={arguments.threads}", *options, *arguments.option]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = statistics.median(record["seconds"] for record in records if record["kind"] == "train")
    return {**json.loads(summary.read_text()), "seconds_per_step": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--espalier", type=Path, default=ROOT / "build/release/bin/espalier")
    parser.add_argument("--folder", type=Path, default=ROOT / "run/quality", help="where the runs are kept")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--option", action="append", default=[], help="further flag of espalier train, e.g. --option=--train.epochs=1")
    arguments = parser.parse_args()

    print("| method | trained | validation % | test % (mean, deviation) | peak MiB | s/step |")
    print("|---|---|---|---|---|---|")
    for method in arguments.methods:
        summaries = [run(method, seed, arguments) for seed in arguments.seeds]
        test = [100 * summary["test"]["accuracy"] for summary in summaries]
        validation = [100 * summary["best"]["value"] for summary in summaries]
        deviation = statistics.stdev(test) if len(test) > 1 else 0.0
        peak = max(max(summary["peak_allocated_bytes"]) for summary in summaries) / 2**20
        seconds = statistics.median(summary["seconds_per_step"] for summary in summaries)
        print(f"| {method} | {summaries[0]['trained_parameters']:,} | {statistics.mean(validation):.1f} | "
              f"{statistics.mean(test):.1f} +- {deviation:.1f} | {peak:.0f} | {seconds:.3f} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
