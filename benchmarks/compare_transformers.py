# SPDX-License-Identifier: Apache-2.0
"""Seconds per training step of Espalier beside transformers + peft: same model, batch, threads and run, in turn.

Fixed batch of 32 x 64 tokens, fp32, dropout 0.1 on in frozen layers too, AdamW, clipping at 1. Each side is a process of its own;
rounds alternate so that a drifting machine hits both. Reported is the median over all steps but the first five of each process.
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from quiet_run import run_quietly

ROOT = Path(__file__).resolve().parent.parent
SKIPPED_STEPS = 5

# name -> (options of Espalier, method of the reference or None, ratio wanted against which reference)
CASES = {
    "lora": (["--peft.method=lora"], "lora", ("lora", 0.80)),
    "full": (["--peft.method=full"], "full", ("full", 0.85)),
    "lst": (["--peft.method=lst"], None, ("lora", 0.55)),
    "lst, backbone dropout off": (["--peft.method=lst", "--peft.lst.backbone_dropout=false"], None, ("lora", 0.45)),
    "probe": (["--peft.method=probe", "--model.pooling=mean"], None, None),
    # Aims: short PyTorch versions of these methods, measured once beside that LoRA.
    "bitfit": (["--peft.method=bitfit"], None, ("lora", 1.00)),
    "rosa": (["--peft.method=rosa"], None, ("lora", 1.04)),
    "meft, rank 8": (["--peft.method=meft", "--peft.meft.pooler_trained=true"], None, ("lora", 1.76)),
    "meft, rank 64": (["--peft.method=meft", "--peft.meft.pooler_trained=true", "--peft.meft.rank=64"], None, ("lora", 1.77)),
    "last": (["--peft.method=last"], None, None),
    "adapter": (["--peft.method=adapter"], None, None),
    "prompt": (["--peft.method=prompt"], None, None),
}


def reference_steps(method: str, model_folder: Path, steps: int, threads: int) -> list[float]:
    """Seconds of each training step of transformers (+ peft); runs in this process."""
    import time

    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=2, dtype=torch.float32)
    if method == "lora":
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier", "pooler"])
        model = get_peft_model(model, config)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(steps):
        batch = {
            "input_ids": torch.randint(1000, 30000, (32, 64), generator=generator),
            "attention_mask": torch.ones(32, 64, dtype=torch.long),
            "labels": torch.randint(0, 2, (32,), generator=generator),
        }
        start = time.perf_counter()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return seconds


def run_reference(method: str, arguments: argparse.Namespace) -> list[float]:
    command = [sys.executable, __file__, "--reference", method, "--model", str(arguments.model), "--steps", str(arguments.steps)]
    output = subprocess.run(command + ["--threads", str(arguments.threads)], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])[SKIPPED_STEPS:]


def run_espalier(options: list[str], arguments: argparse.Namespace) -> tuple[list[float], int]:
    """Seconds of the counted steps, and peak allocated bytes."""
    folder = Path(tempfile.mkdtemp(prefix="espalier-benchmark-"))
    command = [str(arguments.espalier), "train", f"--model.path={arguments.model}", f"--data.path={arguments.data}",
               f"--run.folder={folder}", "--data.fixed_length=64", "--data.max_length=64", "--data.global_batch_size=32",
               f"--train.max_steps={arguments.steps}", "--train.evaluation_batch_size=32", "--train.evaluate_every_steps=1000000",
               f"--parallel.threads={arguments.threads}", "--optimizer.learning_rate=1e-4", *options]
    try:
        run_quietly(command)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        seconds = [record["seconds"] for record in records if record["kind"] == "train"]
        peak = max(json.loads((folder / "summary.json").read_text())["peak_allocated_bytes"])
    finally:
        shutil.rmtree(folder)
    return seconds[SKIPPED_STEPS:], peak


def processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--espalier", type=Path, default=ROOT / "build/release/bin/espalier")
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/quickstart/minilm")
    parser.add_argument("--data", type=Path, default=ROOT / ".cache/quickstart/reviews.h5")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--steps", type=int, default=25, help="steps of each process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reference", choices=["lora", "full"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reference:
        print(json.dumps(reference_steps(arguments.reference, arguments.model, arguments.steps, arguments.threads)))
        return

    reference: dict[str, list[float]] = {"lora": [], "full": []}
    cases = {name: CASES[name] for name in arguments.cases}
    own: dict[str, list[float]] = {name: [] for name in cases}
    peaks: dict[str, int] = {}
    for _ in range(arguments.rounds):
        for method in reference:
            if any(method in (reference_method, aim and aim[0]) for _, reference_method, aim in cases.values()):
                reference[method] += run_reference(method, arguments)
        for name, (options, _, _) in cases.items():
            seconds, peaks[name] = run_espalier(options, arguments)
            own[name] += seconds

    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()
    print(f"{processor_name()}, {arguments.threads} threads, commit {commit}, batch 32 x 64, fp32, median s/step\n")
    print("| method | Espalier s/step | transformers + peft s/step | ratio | aim | peak MiB |")
    print("|---|---|---|---|---|---|")
    for name, (_, reference_method, aim) in cases.items():
        seconds = statistics.median(own[name])
        beside = f"{statistics.median(reference[reference_method]):.3f}" if reference_method else "-"
        ratio = f"{seconds / statistics.median(reference[aim[0]]):.2f} of {aim[0]}" if aim else "-"
        wanted = f"{aim[1]:.2f}" if aim else "-"
        print(f"| {name} | {seconds:.3f} | {beside} | {ratio} | {wanted} | {peaks[name] / 2**20:.0f} |")


if __name__ == "__main__":
    main()
