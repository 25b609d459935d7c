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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import make_golden_visual

ROOT = Path(__file__).resolve().parent.parent
# Two machines or thread counts differ in the last bits only.
TOLERANCE = 1e-5
VOCAB_SIZE = 60
POSITIONS = 24
ROWS, TOKENS, TARGET_TOKENS = 4, 11, 7
VISUAL_TOKENS = 3  # of an image


@dataclass(frozen=True)
class Golden:
    """One model and one padded batch."""

    name: str
    model_class: str  # of transformers or of make_golden_visual
    config: dict
    padding: str = "right"  # left | right | none (then there is no mask either)
    labels: int = 0  # pooled heads: number of classes, 1: regression
    has_token_types: bool = False
    stored_type: torch.dtype = torch.float32
    edit_config: Callable[[dict], None] = lambda config: None  # as other versions wrote it
    edit_state: Callable[[dict], dict] = lambda state: state  # as other programs named it
    is_head_untied: bool = False
    num_images: int = 0  # of a row
    has_boxes: bool = False

    @property
    def makes_texts(self) -> bool:
        """Right-padded prompts of causal models have their ends in the middle: those are not gone on from."""
        is_causal = "CausalLM" in self.model_class or "LMHead" in self.model_class
        return "ConditionalGeneration" in self.model_class or (is_causal and self.padding != "right")

    @property
    def family(self) -> str:
        return self.name.rsplit("_", 1)[0]

    @property
    def is_encoder_decoder(self) -> bool:
        return self.family in ("t5", "clip_t5", "bart")

    @property
    def has_gradients(self) -> bool:
        return self.name.endswith("_1")


def bert(layers: int, width: int, heads: int, feed_forward: int, activation: str, epsilon: float, types: int = 2) -> dict:
    return dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=feed_forward,
                hidden_act=activation, layer_norm_eps=epsilon, type_vocab_size=types, max_position_embeddings=POSITIONS)


def t5(width: int, heads: int, head_width: int, feed_forward: int, layers: int, decoder_layers: int, kind: str, **more) -> dict:
    return dict(d_model=width, num_heads=heads, d_kv=head_width, d_ff=feed_forward, num_layers=layers,
                num_decoder_layers=decoder_layers, feed_forward_proj=kind, relative_attention_num_buckets=8,
                relative_attention_max_distance=9, decoder_start_token_id=0, **more)


def clip_t5(*sizes, **more) -> dict:
    return t5(*sizes, **{"feat_dim": 14, "pos_dim": 4, "n_images": 2, "use_vis_order_embedding": True, "use_vis_layer_norm": True,
                         "individual_vis_layer_norm": True, **more})


def bart(width: int, encoder: tuple[int, int, int], decoder: tuple[int, int, int], **more) -> dict:
    return dict(d_model=width, encoder_layers=encoder[0], encoder_attention_heads=encoder[1], encoder_ffn_dim=encoder[2],
                decoder_layers=decoder[0], decoder_attention_heads=decoder[1], decoder_ffn_dim=decoder[2],
                max_position_embeddings=POSITIONS, **more)


def opt(width: int, heads: int, feed_forward: int, layers: int, **more) -> dict:
    return dict(hidden_size=width, num_attention_heads=heads, ffn_dim=feed_forward, num_hidden_layers=layers,
                max_position_embeddings=POSITIONS, **more)


def gpt2(width: int, heads: int, layers: int, **more) -> dict:
    return dict(n_embd=width, n_head=heads, n_layer=layers, n_positions=POSITIONS, bos_token_id=0, eos_token_id=0, **more)


def llama(width: int, heads: int, shared_heads: int, feed_forward: int, layers: int, **more) -> dict:
    return dict(hidden_size=width, num_attention_heads=heads, num_key_value_heads=shared_heads, intermediate_size=feed_forward,
                num_hidden_layers=layers, max_position_embeddings=POSITIONS, **more)


def vit(width: int, heads: int, feed_forward: int, layers: int, image: int, patch: int, **more) -> dict:
    return dict(hidden_size=width, num_attention_heads=heads, intermediate_size=feed_forward, num_hidden_layers=layers,
                image_size=image, patch_size=patch, **more)


def with_old_names(state: dict) -> dict:
    """gamma and beta, and a position_ids buffer, as in the first folders."""
    for new, old in {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state | {"bert.embeddings.position_ids": torch.arange(POSITIONS).unsqueeze(0)}


def without_prefix(prefix: str) -> Callable[[dict], dict]:
    """A bare backbone, as original hub files are named."""
    return lambda state: {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def with_old_rope(config: dict) -> None:
    """rope_theta and rope_scaling, as transformers 4 wrote them."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype", "float32")


def with_buffers(state: dict) -> dict:
    """The causal masks that older GPT-2 folders store, and no prefix."""
    state = without_prefix("transformer.")(state)
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("h."))
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, POSITIONS, POSITIONS).tril() for i in range(layers)}
    return state | masks | {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(layers)}


def with_copies(state: dict) -> dict:
    """The copies of the tied table that the original T5 files hold."""
    copies = {f"{stack}.embed_tokens.weight": state["shared.weight"].clone() for stack in ("encoder", "decoder")}
    return state | copies


def as_version_1_1(config: dict) -> None:
    """T5 1.1 as it is published: the tie flag alone says that the head is its own and unscaled."""
    config["tie_word_embeddings"] = False
    config.pop("scale_decoder_outputs", None)


LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16)
GOLDENS = [
    Golden("bert_1", "BertForSequenceClassification", bert(3, 24, 3, 40, "gelu", 1e-12), labels=2, has_token_types=True),
    Golden("bert_2", "BertForSequenceClassification", bert(2, 32, 4, 56, "relu", 1e-6), "left", 5, has_token_types=True),
    Golden("bert_3", "BertForSequenceClassification", bert(5, 16, 2, 64, "gelu_new", 1e-3), "none", 1, edit_state=with_old_names),
    Golden("bert_4", "BertModel", bert(3, 20, 5, 24, "silu", 1e-12, 3), has_token_types=True, stored_type=torch.bfloat16),
    Golden("roberta_1", "RobertaForSequenceClassification", bert(3, 24, 2, 48, "gelu", 1e-5, 1), labels=2),
    Golden("roberta_2", "RobertaForSequenceClassification", bert(4, 18, 3, 30, "relu", 1e-5, 1), "left", 5),
    Golden("roberta_3", "RobertaForSequenceClassification", bert(1, 32, 4, 32, "gelu_new", 1e-5), "none", 1),
    Golden("roberta_4", "XLMRobertaModel", bert(3, 16, 1, 20, "silu", 1e-4, 1), "left"),
    Golden("t5_1", "T5ForConditionalGeneration", t5(24, 3, 10, 40, 3, 2, "relu"), edit_state=with_copies),
    Golden("t5_2", "T5ForConditionalGeneration", t5(20, 5, 4, 36, 2, 3, "gated-gelu", tie_word_embeddings=False), "none",
           edit_config=as_version_1_1, is_head_untied=True),
    Golden("t5_3", "T5ForConditionalGeneration", t5(16, 2, 8, 24, 1, 1, "gated-silu", layer_norm_epsilon=1e-3),
           stored_type=torch.bfloat16),
    Golden("t5_4", "T5ForSequenceClassification", t5(16, 2, 6, 24, 2, 1, "gated-gelu"), "none", labels=3),
    Golden("clip_t5_1", "VisualT5ForConditionalGeneration", clip_t5(24, 3, 10, 40, 3, 2, "relu"), edit_state=with_copies,
           num_images=2, has_boxes=True),
    Golden("clip_t5_2", "VisualT5ForConditionalGeneration", clip_t5(20, 5, 4, 36, 2, 3, "gated-gelu", tie_word_embeddings=False),
           "none", edit_config=as_version_1_1, is_head_untied=True, num_images=1),
    Golden("clip_t5_3", "VisualT5ForConditionalGeneration", clip_t5(16, 2, 8, 24, 1, 1, "gated-silu", use_vis_order_embedding=False),
           "left", stored_type=torch.bfloat16, num_images=1, has_boxes=True),
    Golden("bart_1", "BartForConditionalGeneration", bart(24, (3, 3, 40), (2, 4, 32), scale_embedding=True)),
    Golden("bart_2", "BartForConditionalGeneration", bart(20, (1, 5, 24), (3, 2, 28), activation_function="relu"), "left"),
    Golden("bart_3", "BartForSequenceClassification", bart(16, (2, 2, 24), (1, 2, 40), activation_function="silu"), "none", 3),
    Golden("opt_1", "OPTForCausalLM", opt(24, 3, 40, 3), "left"),
    Golden("opt_2", "OPTForCausalLM", opt(20, 2, 36, 2, do_layer_norm_before=False, word_embed_proj_dim=12), "right"),
    Golden("opt_3", "OPTForCausalLM", opt(16, 1, 24, 5, activation_function="gelu"), "none", stored_type=torch.float16),
    Golden("gpt2_1", "GPT2LMHeadModel", gpt2(24, 3, 3), "left"),
    Golden("gpt2_2", "GPT2LMHeadModel", gpt2(20, 2, 2, n_inner=36, activation_function="relu", scale_attn_by_inverse_layer_idx=True,
                                             reorder_and_upcast_attn=True), edit_state=with_buffers),
    Golden("gpt2_3", "GPT2ForSequenceClassification", gpt2(16, 4, 1, scale_attn_weights=False, pad_token_id=1), labels=3),
    Golden("llama_1", "LlamaForCausalLM", llama(24, 6, 2, 40, 3), "left"),
    Golden("llama_2", "LlamaForCausalLM", llama(20, 2, 1, 36, 2, head_dim=12, attention_bias=True, mlp_bias=True,
                                                tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE), edit_config=with_old_rope),
    Golden("llama_3", "LlamaForCausalLM", llama(16, 2, 2, 24, 5, hidden_act="gelu", rope_parameters=dict(
        rope_type="linear", rope_theta=100.0, factor=2.0)), "none", stored_type=torch.bfloat16),
    Golden("llama_4", "MistralForSequenceClassification", llama(16, 4, 2, 24, 1, sliding_window=None, pad_token_id=1), labels=2),
    Golden("vit_1", "ViTForImageClassification", vit(24, 3, 40, 3, 12, 4), labels=5),
    Golden("vit_2", "ViTForImageClassification", vit(20, 2, 24, 2, 10, 5, hidden_act="relu", qkv_bias=False, num_channels=1), labels=2),
    Golden("vit_3", "ViTModel", vit(16, 4, 32, 5, 11, 3, layer_norm_eps=1e-3), stored_type=torch.float16),
]

# Where `transformers` keeps the stacks of each family: blocks by name of their place in the chain, and the norms that end them.
STACKS = {
    "bert": {"encoder": "encoder.layer"},
    "roberta": {"encoder": "encoder.layer"},
    "t5": {"encoder": "encoder.block", "encoder_final": "encoder.final_layer_norm", "decoder": "decoder.block",
           "decoder_final": "decoder.final_layer_norm"},
    "clip_t5": {"encoder": "encoder.block", "encoder_final": "encoder.final_layer_norm", "decoder": "decoder.block",
                "decoder_final": "decoder.final_layer_norm"},
    "bart": {"encoder": "encoder.layers", "decoder": "decoder.layers"},
    "opt": {"decoder": "decoder.layers", "decoder_final": ("decoder.project_out", "decoder.final_layer_norm")},
    "gpt2": {"decoder": "h", "decoder_final": "ln_f"},
    "llama": {"decoder": "layers", "decoder_final": "norm"},
    "vit": {"encoder": "layers", "encoder_final": "layernorm"},
}


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
