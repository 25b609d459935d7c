# SPDX-License-Identifier: Apache-2.0
"""Sixteen side networks on one frozen forward beside sixteen runs of one each: seconds, peak bytes, and whether the bits agree; and the
sixteen as grouped matrix products (train.batched).

All sides train the same steps on the quickstart's training rows, in turn on the same machine; every run is a process of its own. The
time is that of the steps alone, without start-up and saving; there is no evaluation.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import h5py
from quiet_run import run_quietly

ROOT = Path(__file__).resolve().parent.parent
RATES = ["5e-4", "1e-3", "3e-3", "1e-2"]
AXES = {"last": ("peft.last.rank", ["4", "8", "16", "32"]), "lst": ("peft.lst.reduction", ["4", "8", "16", "32"])}


def training_rows(source: Path, target: Path) -> Path:
    """The dataset without the rows that a run would evaluate on."""
    with h5py.File(source) as whole, h5py.File(target, "w") as part:
        part.attrs.update(whole.attrs)
        whole.copy("train", part)
    return target


def train(arguments: argparse.Namespace, method: str, folder: Path, *words: str) -> dict:
    command = [str(arguments.espalier), "train", f"--config={ROOT / 'configs' / f'minilm_{method}_reviews.ini'}", f"--run.folder={folder}",
               "--parallel.stages=1", f"--parallel.threads={arguments.threads}", f"--train.max_steps={arguments.steps}",
               f"--data.path={folder.parent / 'train.h5'}", f"--data.fixed_length={arguments.tokens}", f"--data.micro_batch_size={arguments.rows}", "--train.restore_best=false",
               *words, *arguments.option]
    run_quietly(command, ROOT, arguments.verbose)
    return json.loads((folder / "summary.json").read_text())


def compare(arguments: argparse.Namespace, method: str, scratch: Path) -> None:
    key, values = AXES[method]
    grid = list(itertools.product(values, RATES))
    sweep = [f"--sweep.{key}={' | '.join(values)}", f"--sweep.optimizer.learning_rate={' | '.join(RATES)}"]
    joint_folder = scratch / f"{method}-joint"
    joint = train(arguments, method, joint_folder, *sweep)
    batched = train(arguments, method, scratch / f"{method}-batched", *sweep, "--train.batched=true")
    seconds, peaks, same = 0.0, [], 0
    for value, rate in grid:
        folder = scratch / f"{method}-{value}-{rate}"
        alone = train(arguments, method, folder, f"--{key}={value}", f"--optimizer.learning_rate={rate}")
        seconds += alone["train_seconds"]
        peaks.append(alone["peak_allocated_bytes"][0])
        name = f"{key.rsplit('.', 1)[-1]}-{value}_learning_rate-{rate}"
        own = joint_folder / "adapter" / name / "adapter.safetensors"
        same += own.read_bytes() == (folder / "adapter" / "adapter.safetensors").read_bytes()
    print(f"| {method} | {len(grid)} | {seconds:.1f} | {joint['train_seconds']:.1f} | {joint['train_seconds'] / seconds:.3f} | "
          f"{max(peaks) / 2**20:.0f} | {joint['peak_allocated_bytes'][0] / 2**20:.0f} | {same} of {len(grid)} | "
          f"{batched['train_seconds']:.1f} | {batched['train_seconds'] / joint['train_seconds']:.3f} | "
          f"{batched['peak_allocated_bytes'][0] / 2**20:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--espalier", type=Path, default=ROOT / "build/release/bin/espalier")
    parser.add_argument("--methods", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--data", type=Path, default=ROOT / ".cache/quickstart/reviews.h5")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64, help="every row is padded to so many")
    parser.add_argument("--rows", type=int, default=32, help="of a micro-batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--option", action="append", default=[], help="further flag of espalier train")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    print("| method | objectives | seconds, one by one | seconds, together | ratio | peak MiB, one | peak MiB, together | same bits "
          "| seconds, grouped | grouped / together | peak MiB, grouped |")
    print("|" + "---|" * 11)
    with tempfile.TemporaryDirectory() as scratch:
        training_rows(arguments.data, Path(scratch) / "train.h5")
        for method in arguments.methods:
            compare(arguments, method, Path(scratch))


if __name__ == "__main__":
    main()
