#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Accuracies on the tasks of VTAB-1K -> means of the groups and over them, as JSON on standard output.

    tools/vtab_means.py runs/cifar runs/dtd ...          run folders (their test accuracy), each called as its task
    tools/vtab_means.py cifar=runs/7 dtd=dtd.json ...    or under any name; a file may be what `espalier evaluate` printed

The mean over all is, as published, the mean of the three groups' means; `tasks_mean` is that of the tasks.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

GROUPS = {
    "natural": ("caltech101", "cifar", "dtd", "oxford_flowers102", "oxford_iiit_pet", "sun397", "svhn"),
    "specialised": ("diabetic_retinopathy", "eurosat", "patch_camelyon", "resisc45"),
    "structured": ("clevr_count", "clevr_dist", "dmlab", "dsprites_loc", "dsprites_ori", "kitti", "smallnorb_azi", "smallnorb_ele"),
}  # fmt: skip
TASKS = tuple(task for tasks in GROUPS.values() for task in tasks)


class InputError(Exception):
    """Ends the program with exit code 2."""


def read_accuracy(path: Path) -> float:
    """Of a finished run's folder, its summary, or the metrics of `espalier evaluate`."""
    file = path / "summary.json" if path.is_dir() else path
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: expected JSON of a finished run or of espalier evaluate, found none ({error})") from None
    metrics = record.get("test", record) if isinstance(record, dict) else None
    accuracy = metrics.get("accuracy") if isinstance(metrics, dict) else None
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
        raise InputError(f"{file}: expected an accuracy from 0 to 1 (of the test split), found {accuracy!r}")
    return float(accuracy)


def read_results(words: Sequence[str]) -> dict[str, float]:
    """Accuracy by task."""
    found: dict[str, float] = {}
    for word in words:
        name, mark, path = word.partition("=")
        name, path = (name, path) if mark else (Path(word).stem, word)
        if name not in TASKS:
            raise InputError(f"{word}: expected a task of VTAB-1K as name ({', '.join(TASKS)}), found {name!r}; write TASK={path}")
        if name in found:
            raise InputError(f"{word}: expected every task once, found {name} again")
        found[name] = read_accuracy(Path(path))
    return found


def means_of(accuracies: dict[str, float]) -> dict[str, object]:
    """A group whose tasks are not all there has no mean: it would be compared with those of others."""
    groups, missing = {}, [task for task in TASKS if task not in accuracies]
    for group, tasks in GROUPS.items():
        if all(task in accuracies for task in tasks):
            groups[group] = math.fsum(accuracies[task] for task in tasks) / len(tasks)
    result: dict[str, object] = {"tasks": {task: accuracies[task] for task in TASKS if task in accuracies}, "groups": groups}
    if missing:
        return result | {"missing": missing}
    return result | {"mean": math.fsum(groups.values()) / len(groups), "tasks_mean": math.fsum(accuracies.values()) / len(TASKS)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="[TASK=]PATH", help="run folder or JSON file of one task")
    try:
        print(json.dumps(means_of(read_results(parser.parse_args(arguments).results)), indent=2))
    except InputError as error:
        print(f"vtab_means.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
