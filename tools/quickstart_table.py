# SPDX-License-Identifier: Apache-2.0
"""Prints the table of scripts/quickstart.sh from the summaries of the LST run and of the linear probe."""

import argparse
import json
import sys
from pathlib import Path


def read_summary(run: Path) -> dict:
    """summary.json of a finished run."""
    file = run / "summary.json"
    try:
        summary = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        sys.exit(f"{file}: expected the summary of a finished run, found none that can be read ({error}); train again")
    if "test" not in summary:
        sys.exit(f"{file}: expected test metrics, found none; the run was stopped before its end")
    return summary


def mebibytes(values: list[int]) -> str:
    return " / ".join(f"{value / 2**20:.1f}" for value in values)


def table_rows(run: dict, probe: dict) -> list[tuple[str, str]]:
    test = run["test"]
    return [
        ("test accuracy", f"{100 * test['accuracy']:.1f} %"),
        ("  majority class", f"{100 * test['majority']:.1f} %"),
        ("  linear probe", f"{100 * probe['test']['accuracy']:.1f} %"),
        ("trained parameters", f"{run['trained_parameters']:,}"),
        ("frozen parameters", f"{run['frozen_parameters']:,}"),
        ("peak MiB by rank", mebibytes(run["peak_allocated_bytes"])),
        ("bytes all-reduced per step, by rank", " / ".join(f"{value:,}" for value in run["reduced_bytes_per_step"])),
        ("samples per second", f"{run['samples_per_second']:.1f}"),
        ("training time", f"{run['train_seconds']:.0f} s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of the fine-tuned model")
    parser.add_argument("probe", type=Path, help="run folder of the linear probe")
    arguments = parser.parse_args()
    run, probe = read_summary(arguments.run), read_summary(arguments.probe)
    print(f"\nMiniLM-L6 on movie reviews, {run['method']}, {run['stages']} pipeline stages x {run['replicas']} replicas")
    for name, value in table_rows(run, probe):
        print(f"  {name:<37} {value}")
    print(f"\n  adapter: {arguments.run}/exported")


if __name__ == "__main__":
    main()
