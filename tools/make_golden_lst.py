#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/golden/lst_1: LST (Sung, Cho, Bansal, NeurIPS 2022, arXiv 2206.06522) beside the T5 of tests/golden/t5_1 and the T5 v1.1
of t5_2, written from the equations of docs/methods/lst.md with plain PyTorch in double. The frozen backbone is that of `transformers`;
the side network is spelled out here, with weights drawn at random. tests/unit/peft/lst_golden_test compares logits, loss and the
gradients of every trained tensor.

    tools/make_golden_lst.py            writes the file
    tools/make_golden_lst.py --check    writes nothing; fails when the stored file is not what would be written
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, linear, relu
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from golden_file import GOLDEN, write_or_check

REDUCTION = 2


@dataclass(frozen=True)
class Case:
    model: str
    kept: dict[str, tuple[int, ...]]
    temperature: float = 0.1
    fuses_before: bool = True
    has_merge: bool = False


CASES = {
    "default": Case("t5_1", {"encoder": (1, 2), "decoder": (0, 1)}),
    "other": Case("t5_2", {"encoder": (0, 1), "decoder": (0, 2)}, temperature=0.5, fuses_before=False, has_merge=True),
}


# B rows, L tokens, d_s side width, H heads
class SideNetwork:
    def __init__(self, case: Case, config, generator: torch.Generator) -> None:
        self.case, self.config = case, config
        self.values: dict[str, torch.Tensor] = {}
        width, inner, side_width = config.d_model, config.num_heads * config.d_kv // REDUCTION, config.d_model // REDUCTION
        middle = config.d_ff // REDUCTION

        def draw(name: str, *shape: int, mean: float = 0.0, deviation: float | None = None) -> None:
            deviation = deviation or 1.0 / shape[-1]**0.5
            drawn = mean + deviation * torch.randn(shape, generator=generator, dtype=torch.float64)
            self.values["lst." + name] = drawn.float().double().requires_grad_()  # exactly what the file will hold

        def draw_linear(name: str, in_features: int, out_features: int, has_bias: bool = True) -> None:
            draw(f"{name}.weight", out_features, in_features)
            if has_bias:
                draw(f"{name}.bias", out_features, deviation=0.2)

        draw_linear("first", width, side_width)
        draw_linear("decoder_first", width, side_width)
        for stack, kept in case.kept.items():
            for number in kept:
                place = f"{stack}.{number}"
                draw_linear(f"{place}.down", width, side_width)
                draw(f"{place}.gate", 1, deviation=0.05)
                for attention in ("attention", "cross_attention") if stack == "decoder" else ("attention",):
                    draw(f"{place}.block.{attention}.norm.weight", side_width, mean=1.0, deviation=0.2)
                    for role in ("query", "key", "value"):
                        draw_linear(f"{place}.block.{attention}.{role}", side_width, inner, has_bias=False)
                    draw_linear(f"{place}.block.{attention}.output", inner, side_width, has_bias=False)
                draw(f"{place}.block.feed_forward.norm.weight", side_width, mean=1.0, deviation=0.2)
                for role in ("gate", "up") if config.is_gated_act else ("up",):
                    draw_linear(f"{place}.block.feed_forward.{role}", side_width, middle, has_bias=False)
                draw_linear(f"{place}.block.feed_forward.down", middle, side_width, has_bias=False)
            draw(f"{stack}.{kept[0]}.block.attention.relative_bias.weight", config.relative_attention_num_buckets, config.num_heads,
                 deviation=1.0)
            draw(f"{stack}_final.norm.weight", side_width, mean=1.0, deviation=0.2)
        draw_linear("up", side_width, width)
        if case.has_merge:
            draw("merge_gate", 1, deviation=0.2)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.values[f"lst.{name}.weight"], self.values.get(f"lst.{name}.bias"))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.layer_norm_epsilon) * self.values[f"lst.{name}.weight"]

    def mix(self, gate: str, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        share = torch.sigmoid(self.values[f"lst.{gate}"] / self.case.temperature)
        return share * first + (1 - share) * second

    def attend(self, name: str, x: torch.Tensor, read: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """No 1 / sqrt(head width); `bias` [B, H, L, L] or what spreads to it."""
        query, key, value = (self.linear(f"{name}.{role}", states).unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2)
                             for role, states in (("query", x), ("key", read), ("value", read)))
        mixed = (query @ key.transpose(-1, -2) + bias).softmax(-1) @ value
        return self.linear(f"{name}.output", mixed.transpose(1, 2).flatten(-2))

    def block(self, name: str, x: torch.Tensor, bias: torch.Tensor, memory: torch.Tensor | None, memory_bias: torch.Tensor) -> torch.Tensor:
        normed = self.norm(f"{name}.attention.norm", x)
        x = x + self.attend(f"{name}.attention", normed, normed, bias)
        if memory is not None:
            x = x + self.attend(f"{name}.cross_attention", self.norm(f"{name}.cross_attention.norm", x), memory, memory_bias)
        normed = self.norm(f"{name}.feed_forward.norm", x)
        up = self.linear(f"{name}.feed_forward.up", normed)
        up = gelu(self.linear(f"{name}.feed_forward.gate", normed), approximate="tanh") * up if self.config.is_gated_act else relu(up)
        return x + self.linear(f"{name}.feed_forward.down", up)

    def positions(self, stack: str, tokens: int) -> torch.Tensor:
        """[1, H, L, L], from the table that the first kept block holds."""
        table = self.values[f"lst.{stack}.{self.case.kept[stack][0]}.block.attention.relative_bias.weight"]
        places = torch.arange(tokens)
        buckets = T5Attention._relative_position_bucket(places[None, :] - places[:, None], bidirectional=stack == "encoder",
                                                        num_buckets=self.config.relative_attention_num_buckets,
                                                        max_distance=self.config.relative_attention_max_distance)
        return table[buckets].permute(2, 0, 1)[None]

    def run(self, stack: str, taps: dict[str, torch.Tensor], padding: torch.Tensor, memory: torch.Tensor | None) -> torch.Tensor:
        """`taps`: what the stack's first block reads, and what every block gives, [B, L, d]. Returns [B, L, d_s]."""
        side = self.linear("first" if stack == "encoder" else "decoder_first", taps[f"{stack}.embedding"])
        tokens = side.shape[1]
        bias = self.positions(stack, tokens)
        bias = bias + (padding if stack == "encoder" else torch.full((tokens, tokens), -torch.inf, dtype=torch.float64).triu(1))
        for number in self.case.kept[stack]:
            name = f"{stack}.{number}"
            ladder = self.linear(f"{name}.down", taps[name])
            if self.case.fuses_before:
                side = self.mix(f"{name}.gate", side, ladder)
            side = self.block(f"{name}.block", side, bias, memory, padding)
            if not self.case.fuses_before:
                side = self.mix(f"{name}.gate", side, ladder)
        return self.norm(f"{stack}_final.norm", side)


def run_backbone(model, batch) -> dict[str, torch.Tensor]:
    """States of the frozen backbone by place."""
    taps = {}

    def watch(stack: str, module) -> None:
        module.block[0].register_forward_pre_hook(lambda _, args, kwargs: taps.update({f"{stack}.embedding": args[0]}), with_kwargs=True)
        for number, block in enumerate(module.block):
            block.register_forward_hook(lambda _, args, output, number=number: taps.update({f"{stack}.{number}": output[0]}))
        module.final_layer_norm.register_forward_hook(lambda _, args, output: taps.update({f"{stack}.final": output}))

    watch("encoder", model.encoder)
    watch("decoder", model.decoder)
    with torch.no_grad():
        model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), labels=batch["labels"])
    return taps


def make_case(case: Case) -> dict[str, torch.Tensor]:
    model = T5ForConditionalGeneration.from_pretrained(GOLDEN / case.model, attn_implementation="eager").double().eval()
    batch = load_file(GOLDEN / case.model / "golden.safetensors")
    side = SideNetwork(case, model.config, torch.Generator().manual_seed(0))
    taps = run_backbone(model, batch)
    padding = torch.zeros(batch["input_ids"].shape, dtype=torch.float64)
    if "attention_mask" in batch:
        padding = padding.masked_fill(batch["attention_mask"] == 0, -torch.inf)
    padding = padding[:, None, None, :]
    memory = side.run("encoder", taps, padding, None)
    state = side.linear("up", side.run("decoder", taps, padding, memory))
    if case.has_merge:
        state = side.mix("merge_gate", state, taps["decoder.final"])
    if model.config.scale_decoder_outputs:
        state = state * model.config.d_model**-0.5
    logits = linear(state, model.lm_head.weight.detach())
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
    gradients = torch.autograd.grad(loss, list(side.values.values()))
    return {"logits": logits, "loss": loss.reshape(1)} | {f"value.{name}": value for name, value in side.values.items()} | {
        f"gradient.{name}": gradient for name, gradient in zip(side.values, gradients)}


def make() -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": tensor.detach().float().contiguous() for name, case in CASES.items() for key, tensor in make_case(case).items()}


if __name__ == "__main__":
    sys.exit(write_or_check("lst_1", make))
