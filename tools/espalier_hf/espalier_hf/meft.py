# SPDX-License-Identifier: Apache-2.0
"""MEFT (docs/methods/meft.md): two streams in place of one. The blocks' own forward is taken over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from espalier_hf.adapter import Adapter, AdapterError
from espalier_hf.calls import Call, arguments_of, state_of, turn_cache_off, with_state
from espalier_hf.factors import Bottleneck, activation_of, attach_factors, follow, run_beside_feed_forward
from espalier_hf.families import Family, Stack, blocks_of

OLDER_SHARE = 0.1


class ReversibleStreams:
    def __init__(self, model: nn.Module, family: Family, adapter: Adapter) -> None:
        self.model, self.adapter = model, adapter
        self.variant = adapter.integer("variant")
        self.scales = [adapter.number(key) or (1.0 if self.variant == plain else 0.1) for key, plain in (("lambda", 2), ("beta", 1))]
        self.is_exact = adapter.options["inversion"] == "exact"
        self.one = 2.0 ** adapter.integer("fraction_bits")
        self.streams: tuple[torch.Tensor, torch.Tensor] | None = None
        if self.variant == 3 and len(family.stacks) > 1:
            raise AdapterError("expected MEFT3 on a model of one stack, found an encoder and a decoder")
        turn_cache_off(model)
        number_in_chain = 0
        for stack in family.stacks:
            blocks = blocks_of(model, stack)
            adapted = [number for number in range(len(blocks)) if number_in_chain + number >= adapter.integer("frozen_bottom")]
            number_in_chain += len(blocks)
            for number in adapted:
                self.take_over(blocks[number], stack, number, number == adapted[0], number == adapted[-1])

    def take_over(self, block: nn.Module, stack: Stack, number: int, is_first: bool, is_last: bool) -> None:
        name, activation = f"{stack.name}.{number}", activation_of(self.model)
        between = None
        if self.variant == 3:
            follow(block, stack.roles["attention.output"], Bottleneck(self.adapter, f"{name}.attn_adapter", activation))
        else:
            between = Bottleneck(self.adapter, f"{name}.rev_adapter", activation)
        run_beside_feed_forward(block, stack.roles, Bottleneck(self.adapter, f"{name}.ffn_adapter", activation))
        plain = block.forward

        def forward(*args: object, **kwargs: object) -> object:
            call = arguments_of(plain_module, args, kwargs)
            outputs: list[object] = []

            def whole(x: torch.Tensor) -> torch.Tensor:
                outputs.append(plain(**(call | {"hidden_states": x})))
                return state_of(outputs[-1])

            if is_first:
                start = self.store(call["hidden_states"])
                self.streams = (start, start)
            if self.variant == 1:
                f, g = whole, between
            elif self.variant == 2:
                f, g = between, whole
            else:
                f, g = self.parts_of(block, stack, call)
            y1, y2 = self.couple(f, g)
            self.streams = (y1, y2) if self.variant == 3 else (y2, y1)
            state = self.merge(stack) if is_last else self.read(y2)
            return with_state(outputs[0], state) if outputs else state

        plain_module = _Signature(plain)
        block.forward = forward

    def parts_of(self, block: nn.Module, stack: Stack, call: Call) -> tuple[Callable, Callable]:
        """Attention and feed-forward, each with its residual and its norm."""
        if stack.attention is None:  # BERT keeps them inside its modules
            return lambda x: state_of(block.attention(x, call.get("attention_mask"))), block.feed_forward_chunk
        modules = {role: block.get_submodule(spot.path) for role, spot in stack.roles.items()}
        others = {name: value for name, value in call.items() if name not in ("hidden_states", "past_key_values", "use_cache")}
        activation = ACT2FN[activation_of(self.model)]

        def part(branch: Callable, norm: nn.Module) -> Callable:
            return (lambda x: norm(x + branch(x))) if stack.norm_follows else (lambda x: x + branch(norm(x)))

        def attend(x: torch.Tensor) -> torch.Tensor:
            return state_of(block.get_submodule(stack.attention)(hidden_states=x, **others))

        def feed_forward(x: torch.Tensor) -> torch.Tensor:
            up = modules["feed_forward.up"](x)
            up = activation(modules["feed_forward.gate"](x)) * up if "feed_forward.gate" in modules else activation(up)
            return modules["feed_forward.down"](up)

        return part(attend, modules["attention.norm"]), part(feed_forward, modules["feed_forward.norm"])

    def store(self, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x.float() * self.one).to(torch.int64) if self.is_exact else x.float()

    def read(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(torch.float32) / self.one if self.is_exact else x).to(self.model.dtype)

    def scale(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.div(x, round(1 / scale), rounding_mode="floor") if self.is_exact else x * scale

    def couple(self, f: Callable, g: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        x1, x2 = self.streams
        y1 = self.scale(x1, self.scales[0]) + self.store(f(self.read(x2)))
        y2 = self.scale(x2, self.scales[1]) + self.store(g(self.read(y1)))
        return y1, y2

    def merge(self, stack: Stack) -> torch.Tensor:
        x1, x2 = (self.read(stream) for stream in self.streams)
        kind = self.adapter.options["merge"]
        if kind == "auto":
            kind = "sum" if stack.is_causal else "mean"
        if kind == "mean":
            return (x1 + x2) / 2
        if kind == "sum":
            return x1 + OLDER_SHARE * x2 if self.variant == 2 else OLDER_SHARE * x1 + x2
        return functional.linear(torch.cat([x1, x2], -1), self.adapter.tensors[f"{stack.name}.merge.weight"].to(x1))


class _Signature(nn.Module):
    """Stands for a module whose forward is taken over, where its arguments are named."""

    def __init__(self, forward: Callable) -> None:
        super().__init__()
        self.forward = forward


def attach_meft(model: nn.Module, family: Family, adapter: Adapter) -> set[str]:
    taken = {name for name in adapter.tensors if "_adapter." in name or ".merge." in name}
    if adapter.options.get("factors", "none") == "lora":
        taken |= attach_factors(model, family, adapter, adapter.lora_scale(), "lora")
    elif adapter.options.get("factors", "none") == "rosa":
        taken |= attach_factors(model, family, adapter, 1.0, "rosa")
    ReversibleStreams(model, family, adapter)
    return taken
