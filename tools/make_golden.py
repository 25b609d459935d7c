#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden files of tests/unit/model/parity_test.cpp: tiny models with random weights as Hugging Face folders, and what
`transformers` computes with them in fp32 (the state behind every layer of the chain, logits, loss, and for the first of each family
the gradients, which tests/unit/peft/gradient_parity_test.cpp reads).

    tools/make_golden.py            writes tests/golden/<family>_<n>/
    tools/make_golden.py --check    writes nothing; fails when the stored files are not what would be written
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import make_golden_visual
from golden_models import GOLDENS, STACKS, VOCAB_SIZE, Golden

ROOT = Path(__file__).resolve().parent.parent
# Two machines or thread counts differ in the last bits only.
TOLERANCE = 1e-5
ROWS, TOKENS, TARGET_TOKENS = 4, 11, 7
VISUAL_TOKENS = 3  # of an image


def draw_weights(model: torch.nn.Module, random: numpy.random.Generator) -> None:
    """Draws every weight so large that attention is far from uniform and activations bend."""
    for name, weight in sorted(model.state_dict(keep_vars=True).items()):
        shape = tuple(weight.shape)
        value = random.standard_normal(shape)
        is_norm = any(part in name.lower() for part in ("norm", "ln_", "embedding.1."))
        is_table = any(part in name for part in ("embed", "shared", "wte", "wpe", "token", "relative", "position"))
        if is_norm and name.endswith("weight"):
            value = 1 + 0.3 * value
        elif len(shape) == 1 or "final_logits_bias" in name:
            value = 0.3 * value
        elif not is_table:
            inputs = shape[0] if "c_" in name else numpy.prod(shape[1:])
            value = 1.5 * value / numpy.sqrt(inputs)
        weight.data.copy_(torch.from_numpy(value.astype(numpy.float32)))


def make_batch(golden: Golden, config: transformers.PretrainedConfig, random: numpy.random.Generator) -> dict[str, torch.Tensor]:
    """A batch of rows of different lengths under the names of `transformers`."""
    batch = {}
    if golden.family == "vit":
        shape = (ROWS, config.num_channels, config.image_size, config.image_size)
        batch["pixel_values"] = torch.from_numpy(random.standard_normal(shape).astype(numpy.float32))
    else:
        pad = config.pad_token_id or 0
        ids = random.integers(3, VOCAB_SIZE, (ROWS, TOKENS))
        mask = numpy.ones_like(ids)
        if golden.is_encoder_decoder and golden.labels:
            ids[:, -1] = config.eos_token_id
        if golden.padding != "none":
            for row, length in enumerate(random.integers(3, TOKENS, ROWS - 1)):  # the last row stays full
                padding = slice(length, None) if golden.padding == "right" else slice(0, TOKENS - length)
                ids[row, padding] = pad
                mask[row, padding] = 0
            batch["attention_mask"] = torch.from_numpy(mask)
        batch["input_ids"] = torch.from_numpy(ids)
    if golden.num_images:
        batch |= make_visual_inputs(golden, config, random)
    if golden.has_token_types:
        batch["token_type_ids"] = torch.from_numpy(random.integers(0, config.type_vocab_size, (ROWS, TOKENS)))
    if golden.labels == 1:
        batch["labels"] = torch.from_numpy(random.standard_normal(ROWS).astype(numpy.float32))
    elif golden.labels > 1:
        batch["labels"] = torch.from_numpy(random.integers(0, golden.labels, ROWS))
    elif golden.is_encoder_decoder:
        labels = random.integers(3, VOCAB_SIZE, (ROWS, TARGET_TOKENS))
        labels[0, 3:] = -100
        batch["labels"] = torch.from_numpy(labels)
    elif "input_ids" in batch and "LM" in golden.model_class:
        labels = batch["input_ids"].clone()
        mask = batch.get("attention_mask", torch.ones_like(labels))
        labels[mask == 0] = -100
        # What padding on the left predicts is nobody's business.
        labels[torch.arange(ROWS), mask.argmax(1)] = -100
        labels[1, :5] = -100
        batch["labels"] = labels
    return batch


def make_visual_inputs(golden: Golden, config: transformers.PretrainedConfig, random: numpy.random.Generator) -> dict[str, torch.Tensor]:
    """Features of all images of a row, one image after the other; boxes and orders where the model is to be told."""
    tokens = golden.num_images * VISUAL_TOKENS
    arrays = {"vis_feats": random.standard_normal((ROWS, tokens, config.feat_dim)).astype(numpy.float32)}
    if golden.has_boxes:
        arrays["vis_boxes"] = numpy.sort(random.random((ROWS, tokens, 2, 2)), -1).reshape(ROWS, tokens, 4).astype(numpy.float32)
    if golden.num_images > 1:
        images, objects = numpy.divmod(numpy.arange(tokens), VISUAL_TOKENS)
        arrays |= {"img_order_ids": numpy.tile(images, (ROWS, 1)), "obj_order_ids": numpy.tile(objects, (ROWS, 1))}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def record_layers(golden: Golden, model: torch.nn.Module, states: dict[str, torch.Tensor]) -> None:
    """Makes every layer of the chain leave its output in `states` as after.<name in the chain>."""
    base = model.base_model

    def first(value: object) -> torch.Tensor:
        return (value[0] if isinstance(value, tuple) else value).detach().clone()

    modules = dict(base.named_modules())
    for place, paths in STACKS[golden.family].items():
        module = next((modules[path] for path in ([paths] if isinstance(paths, str) else paths) if path in modules), None)
        if module is None:
            continue
        if not isinstance(module, torch.nn.ModuleList):
            module.register_forward_hook(lambda _m, _i, output, name=place: states.update({f"after.{name}": first(output)}))
            continue
        embedding = "decoder_embedding" if place == "decoder" and "encoder" in STACKS[golden.family] else "embedding"
        module[0].register_forward_pre_hook(
            lambda _m, args, kwargs, name=embedding: states.update(
                {f"after.{name}": first(args[0] if args else kwargs["hidden_states"])}), with_kwargs=True)
        for number, block in enumerate(module):
            block.register_forward_hook(
                lambda _m, _i, output, name=f"{place}.{number}": states.update({f"after.{name}": first(output)}))


def generate(model: torch.nn.Module, batch: dict[str, torch.Tensor], **options) -> torch.Tensor:
    """New tokens of each row [ROWS, n], -1 behind the end token."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", *make_golden_visual.VISUAL_INPUTS) if name in batch}
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=False, **options)
    tokens = tokens[:, 1 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]:]
    if model.generation_config.eos_token_id is not None:
        ended = (tokens == model.generation_config.eos_token_id).int().cumsum(1) > 0
        tokens = tokens.masked_fill(ended, -1)
    return tokens.contiguous()


def add_generated(model: torch.nn.Module, batch: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    """Greedy and beam search; a token that the model likes is made the end token, so that texts end at different lengths."""
    settings = model.generation_config
    settings.eos_token_id = settings.bos_token_id = settings.forced_eos_token_id = None
    settings.pad_token_id = model.config.pad_token_id or 0
    likes = generate(model, batch, no_repeat_ngram_size=1)
    model.config.eos_token_id = settings.eos_token_id = int(likes[0, 3])
    model.config.forced_eos_token_id = None
    tensors["generated.greedy"] = generate(model, batch)
    tensors["generated.beams"] = generate(model, batch, num_beams=4, length_penalty=0.7)
    tensors["generated.rules"] = generate(model, batch, num_beams=3, no_repeat_ngram_size=2, min_new_tokens=4, early_stopping=True)


def stored_state(golden: Golden, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors as a folder holds them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        state = load_file(Path(folder) / "model.safetensors")
    return {name: tensor.to(golden.stored_type) if tensor.is_floating_point() else tensor
            for name, tensor in golden.edit_state(state).items()}


def stored_gradients(golden: Golden, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of the loss for every tensor that a folder holds and that trains. Leaves the gradients as the weights."""
    model(**batch).loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.grad)
    buffers = {name for name, _ in model.named_buffers()}
    return {name: tensor for name, tensor in stored_state(golden, model).items() if name not in buffers}


def write_golden(golden: Golden, folder: Path) -> None:
    """Writes config.json, model.safetensors, golden.safetensors and, where gradients are wanted, gradients.safetensors."""
    random = numpy.random.default_rng(sum(golden.name.encode()))
    model_class = getattr(make_golden_visual if golden.num_images else transformers, golden.model_class)
    more = {} if golden.family == "vit" else {"vocab_size": VOCAB_SIZE}
    if golden.family in ("bert", "roberta"):
        more["pad_token_id"] = 0 if golden.family == "bert" else 1
    config = AutoConfig.for_model(model_class.config_class.model_type, **golden.config, **more, num_labels=max(golden.labels, 1),
                                  attn_implementation="eager")
    has_pooler = {} if golden.labels or golden.family not in ("bert", "roberta", "vit") else {"add_pooling_layer": False}
    model = model_class(config, **has_pooler).eval()
    if golden.is_head_untied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    states: dict[str, torch.Tensor] = {}
    record_layers(golden, model, states)
    with torch.no_grad():
        draw_weights(model, random)
        for weight in model.state_dict(keep_vars=True).values():  # what a loader of the stored numbers sees
            weight.data.copy_(weight.data.to(golden.stored_type))
        batch = make_batch(golden, config, random)
        output = model(**batch)
    tensors = batch | states | {"last_hidden_state": list(states.values())[-1].clone()}
    if "logits" in output:
        tensors |= {"logits": output.logits.contiguous(), "loss": output.loss.reshape(1)}

    if golden.makes_texts:
        with torch.no_grad():
            add_generated(model, batch, tensors)

    folder.mkdir(parents=True, exist_ok=True)
    text = json.loads(config.to_json_string())
    text.pop("transformers_version", None)
    text["architectures"] = [golden.model_class]
    golden.edit_config(text)
    (folder / "config.json").write_text(json.dumps(text, indent=2, sort_keys=True) + "\n", encoding="ascii")
    state = {name: tensor.contiguous() for name, tensor in stored_state(golden, model).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "golden.safetensors")
    if golden.has_gradients:
        gradients = stored_gradients(golden, model, batch)
        save_file({name: tensor.contiguous() for name, tensor in gradients.items()}, folder / "gradients.safetensors")


def differences(stored: Path, fresh: Path) -> list[str]:
    """What differs between two golden folders, as sentences."""
    found = []
    if (stored / "config.json").read_text(encoding="ascii") != (fresh / "config.json").read_text(encoding="ascii"):
        found.append(f"{stored / 'config.json'}: not what would be written now")
    for name in sorted(path.name for path in fresh.glob("*.safetensors")):
        if not (stored / name).is_file():
            found.append(f"{stored / name}: missing")
            continue
        old, new = load_file(stored / name), load_file(fresh / name)
        if old.keys() != new.keys():
            found.append(f"{stored / name}: other tensors: {sorted(old.keys() ^ new.keys())}")
            continue
        for key in sorted(old):
            if old[key].shape != new[key].shape or old[key].dtype != new[key].dtype:
                found.append(f"{stored / name}: {key}: another shape or type")
                continue
            error = (old[key].double() - new[key].double()).abs().max().item()
            scale = new[key].double().abs().max().item()
            if error > TOLERANCE * scale:
                found.append(f"{stored / name}: {key}: off by {error / scale:.1e} of its largest value")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "tests" / "golden", help="folder of the golden folders")
    parser.add_argument("--check", action="store_true", help="compare with the stored files instead of writing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if not arguments.check:
        for golden in GOLDENS:
            write_golden(golden, arguments.output / golden.name)
        return 0
    problems = []
    with tempfile.TemporaryDirectory() as temporary:
        for golden in GOLDENS:
            stored = arguments.output / golden.name
            if not (stored / "golden.safetensors").is_file():
                print(f"{stored}: expected a golden folder; found none; run tools/make_golden.py", file=sys.stderr)
                return 2
            write_golden(golden, Path(temporary) / golden.name)
            problems += differences(stored, Path(temporary) / golden.name)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
