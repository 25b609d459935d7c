# SPDX-License-Identifier: Apache-2.0
"""LAST (docs/methods/last.md)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from espalier_hf.adapter import Adapter, AdapterError
from espalier_hf.calls import Call, on_input, on_output, state_of, turn_cache_off, with_state
from espalier_hf.families import Family, blocks_of


class LowRankAttentionSide:
    def __init__(self, model: nn.Module, family: Family, adapter: Adapter) -> None:
        if len(family.stacks) != 1:
            raise AdapterError("expected LAST on a model of one stack, found an encoder and a decoder")
        stack = family.stacks[0]
        self.adapter, self.is_causal = adapter, stack.is_causal
        self.sum: torch.Tensor | None = None  # c
        self.delta: torch.Tensor | float = 0.0
        turn_cache_off(model)
        blocks = blocks_of(model, stack)
        norm = blocks[0].get_submodule(stack.roles["attention.norm"].path)
        self.epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
        on_input(blocks[0], self.begin)
        for number, block in enumerate(blocks):
            name = f"last.{stack.name}.{number}.module."
            modules = sorted({int(key.removeprefix(name).split(".")[0]) for key in adapter.tensors if key.startswith(name)})
            if modules:
                is_last = number == len(blocks) - 1
                on_output(block, lambda call, output, names=[f"{name}{module}" for module in modules], is_last=is_last:
                          self.climb(call, output, names, is_last))

    def begin(self, call: Call) -> None:
        self.sum, self.delta = call["hidden_states"].float(), 0.0

    def climb(self, call: Call, output: object, names: list[str], is_last: bool) -> object:
        state = state_of(output).float()
        self.sum = self.sum + state
        for name in names:
            self.delta = self.delta + self.attend(name, self.sum + self.delta, call.get("attention_mask"))
        if not is_last:
            return None
        result = (state if self.adapter.flag("correction") else self.sum) + self.delta
        return with_state(output, result.to(state_of(output).dtype))

    def attend(self, name: str, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        tensors = {role: self.adapter.tensors[f"{name}.{role}"].to(x) if f"{name}.{role}" in self.adapter.tensors else None
                   for role in ("norm.weight", "norm.bias", "qkv.weight", "qkv.bias", "up.weight", "up.bias")}
        normed = functional.layer_norm(x, x.shape[-1:], tensors["norm.weight"], tensors["norm.bias"], self.epsilon)
        heads = self.adapter.integer("heads")
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2)
                             for part in functional.linear(normed, tensors["qkv.weight"], tensors["qkv.bias"]).chunk(3, -1))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if self.is_causal:
            tokens = x.shape[1]
            scores = scores.masked_fill(torch.ones(tokens, tokens, device=x.device).triu(1).bool(), -torch.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        # A row that may see nothing is padding, whose state nothing reads.
        mixed = (scores.softmax(-1).nan_to_num(0.0) @ value).transpose(1, 2).flatten(-2)
        return functional.linear(mixed, tensors["up.weight"], tensors["up.bias"])
