# SPDX-License-Identifier: Apache-2.0
"""What one training step of transformers + peft holds in memory: the rows of memory_table that they have, at its shapes.

Random weights from a config, fp32, CPU, dropout on, AdamW, no gradient accumulation. Bytes are exact: PyTorch's profiler reports every
allocation of a CPU tensor and every release, and the running sum over a step, with moments in place, is what stands here.
Activations are what the forward leaves for the backward. Every row is a process of its own. A row that would need more than --limit is
measured at smaller batches, from which the whole follows: bytes are affine in the batch. --from 8 16 measures at these two alone.
"""

import argparse
import json
import subprocess
import sys

MEBI = 2**20
# name -> (config class, model class, config, batch, tokens, target tokens), as in memory_table.cpp
MODELS = {
    "t5-base": ("T5Config", "T5ForConditionalGeneration",
                {"d_model": 768, "num_heads": 12, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "vocab_size": 32128, "pad_token_id": 0,
                 "decoder_start_token_id": 0}, 100, 128, 4),
    "bert-base": ("BertConfig", "BertForSequenceClassification", {}, 32, 512, 0),
    "vit-base": ("ViTConfig", "ViTForImageClassification", {}, 32, 197, 0),
    "roberta-large": ("RobertaConfig", "RobertaForSequenceClassification",
                      {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 4096,
                       "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}, 16, 128, 0),
    "opt-1.3b": ("OPTConfig", "OPTForCausalLM",
                 {"hidden_size": 2048, "num_attention_heads": 32, "ffn_dim": 8192, "num_hidden_layers": 24, "vocab_size": 50272,
                  "word_embed_proj_dim": 2048, "max_position_embeddings": 2048}, 4, 128, 128),
}
LORA_TARGETS = {"t5-base": ["q", "v"], "bert-base": ["query", "value"], "vit-base": ["q_proj", "v_proj"], "roberta-large": ["query", "value"],
                "opt-1.3b": ["q_proj", "v_proj"]}
HEADS = {"bert-base": ["classifier"], "vit-base": ["classifier"], "roberta-large": ["classifier"], "t5-base": [], "opt-1.3b": []}
METHODS = ["full", "lora", "bitfit"]


def make_model(name: str, method: str, attention: str):
    """The model with what trains marked, in training mode."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.logging.set_verbosity_error()
    config_class, model_class, values, *_ = MODELS[name]
    config = getattr(transformers, config_class)(**values)
    if name == "t5-base" or name == "opt-1.3b":
        config.use_cache = False  # as trainers do
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS[name], modules_to_save=HEADS[name] or None))
    elif method == "bitfit":
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad = parameter_name.endswith(".bias") or any(head in parameter_name for head in HEADS[name])
    return model.train()


def make_batch(name: str, rows: int) -> dict:
    import torch

    _, _, _, _, tokens, targets = MODELS[name]
    if name == "vit-base":
        return {"pixel_values": torch.randn(rows, 3, 224, 224), "labels": torch.zeros(rows, dtype=torch.long)}
    ids = torch.randint(2, 30000, (rows, tokens))
    labels = torch.zeros(rows, dtype=torch.long) if targets == 0 else ids.clone() if targets == tokens else torch.randint(2, 30000, (rows, targets))
    return {"input_ids": ids, "attention_mask": torch.ones(rows, tokens, dtype=torch.long), "labels": labels}


def memory_events(profile) -> list[tuple[int, int]]:
    """(time, bytes) of every allocation (positive) and release (negative), in order."""
    events = [(event.start_ns(), event.nbytes()) for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return sorted(events, key=lambda event: event[0])


def measure(name: str, method: str, batches: list[int], attention: str) -> list[dict]:
    """Bytes of a step of each batch; runs in this process."""
    import torch

    torch.set_num_threads(2)
    model = make_model(name, method, attention)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, foreach=False)
    model(**make_batch(name, 1)).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in [*model.parameters(), *model.buffers()]}
    held = {"trained": sum(p.numel() for p in trained), "weights": sum(storages.values()), "gradients": sum(p.nbytes for p in trained),
            "optimizer": sum(value.nbytes for state in optimizer.state.values() for value in state.values())}
    return [{"rows": rows, **held, **measure_step(model, optimizer, make_batch(name, rows), held)} for rows in batches]


def measure_step(model, optimizer, batch: dict, held: dict) -> dict:
    from torch.profiler import ProfilerActivity, profile, record_function

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        with record_function("forward"):
            output = model(**batch)
            loss = output.loss
            del output  # a trainer keeps the loss alone
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    forward = next(event for event in recorded.profiler.kineto_results.events() if event.name() == "forward")
    end_of_forward = forward.start_ns() + forward.duration_ns()
    live = peak = activations = 0
    for time, size in memory_events(recorded):
        live += size
        peak = max(peak, live)
        if time <= end_of_forward:
            activations = live
    if live != 0:
        raise RuntimeError(f"expected a step to leave nothing behind, found {live} bytes")
    inputs = sum(value.nbytes for value in batch.values())
    return {"activations": activations, "peak": held["weights"] + held["optimizer"] + inputs + peak}


def run(name: str, method: str, batches: list[int], attention: str) -> list[dict]:
    command = [sys.executable, __file__, "--measure", name, method, "--from", *map(str, batches), "--attention", attention]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def extrapolate(half: dict, whole: dict, rows: int) -> dict:
    share = (rows - half["rows"]) / (whole["rows"] - half["rows"])
    line = {key: half[key] + share * (whole[key] - half[key]) for key in ("weights", "gradients", "optimizer", "activations", "peak")}
    return {**whole, **line, "rows": rows}


def find(name: str, method: str, arguments: argparse.Namespace) -> tuple[list[dict], dict]:
    """What was measured, and the whole batch."""
    whole_rows = rows = MODELS[name][3]
    batches = arguments.batches
    if not batches:
        one, three = run(name, method, [1, 3], arguments.attention)
        slope = max(three[key] - one[key] for key in ("activations", "peak")) / 2
        while rows > 2 and one["peak"] + 1.1 * slope * rows > arguments.limit * 1e9:
            rows = (rows + 1) // 2
        batches = [rows] if rows == whole_rows else [rows // 2, rows]
    measured = run(name, method, batches, arguments.attention)
    return measured, measured[0] if len(measured) == 1 else extrapolate(*measured, whole_rows)


def print_row(name: str, label: str, found: dict, full: dict | None) -> None:
    numbers = [found[key] for key in ("weights", "gradients", "optimizer", "activations", "peak")]
    numbers.append(found["peak"] - found["weights"] - found["optimizer"])
    ratios = [f"{found[key] / full[key]:.3f}" if full else "" for key in ("peak", "activations")]
    print(f"| {name} | {label} | {found['trained']} | " + " | ".join(f"{number / MEBI:.1f}" for number in numbers) + " | " + " | ".join(ratios) + " |",
          flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; default: all")
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all that fit the model")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa", help="how transformers computes attention")
    parser.add_argument("--limit", type=float, default=20.0, help="GB that a measurement may need")
    parser.add_argument("--from", type=int, nargs="+", dest="batches", help="the two batches to measure at, whatever the limit")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, arguments.batches, arguments.attention)))
        return
    for name in arguments.models or MODELS:
        _, _, _, rows, tokens, _ = MODELS[name]
        print(f"## {name}, batch {rows} x {tokens} tokens, transformers + peft, attention {arguments.attention}\n\nMiB\n")
        print("| method | batch | trained | weights | gradients | optimizer | activations | peak | peak - weights - optimizer | "
              "peak / full | activations / full |\n|---|---|---|---|---|---|---|---|---|---|---|")
        full = None
        for method in arguments.method or METHODS:
            if method == "bitfit" and name == "t5-base":
                continue  # no biases
            try:
                measured, whole = find(name, method, arguments)
            except subprocess.CalledProcessError as error:
                print(f"| {method} | {rows} | failed | | | | | | | | |", flush=True)
                print(error, file=sys.stderr)
                continue
            if method == "full":
                full = whole
            is_measured = len(measured) == 1
            for point in [] if is_measured or arguments.batches else measured:
                print_row(method, str(point["rows"]), point, None)
            print_row(method, str(rows) if is_measured else f"{rows}, computed", whole, full)
        print(flush=True)


if __name__ == "__main__":
    main()
