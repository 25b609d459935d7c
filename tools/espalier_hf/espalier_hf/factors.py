# SPDX-License-Identifier: Apache-2.0
"""LoRA (docs/methods/lora.md) and ROSA: products of thin matrices beside linears; and bottleneck adapters (baselines.md)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from espalier_hf.adapter import Adapter, AdapterError
from espalier_hf.calls import on_input, on_output
from espalier_hf.families import Family, Spot, blocks_of


def linears(model: nn.Module, family: Family):
    """Canonical name, block and spot of every role of every block."""
    for stack in family.stacks:
        for number, block in enumerate(blocks_of(model, stack)):
            for role, spot in stack.roles.items():
                yield f"{stack.name}.{number}.{role}", block, spot


def attach_factors(model: nn.Module, family: Family, adapter: Adapter, scale: float, kind: str) -> set[str]:
    """y + scale B A x. Returns the names of the tensors that it took."""
    taken = set()
    for name, block, spot in linears(model, family):
        if f"{name}.{kind}_a" not in adapter.tensors:
            continue
        a, b = (adapter.tensors[f"{name}.{kind}_{factor}"] for factor in "ab")
        taken |= {f"{name}.{kind}_a", f"{name}.{kind}_b"}
        add_product(block, spot, a, b, scale)
    return taken


def add_product(block: nn.Module, spot: Spot, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    def change(call, output):
        x = next(iter(call.values()))
        added = functional.linear(functional.linear(x, a.to(x)), b.to(x)) * scale
        begin = spot.part * added.shape[-1]
        return torch.cat([output[..., :begin], output[..., begin:begin + added.shape[-1]] + added,
                          output[..., begin + added.shape[-1]:]], -1)

    on_output(block.get_submodule(spot.path), change)


class Bottleneck:
    """Up(act(Down(x))), with a LayerNorm in front where the adapter has one."""

    def __init__(self, adapter: Adapter, name: str, activation: str) -> None:
        self.tensors = {role: adapter.tensors.get(f"{name}.{role}") for role in (
            "norm.weight", "norm.bias", "down.weight", "down.bias", "up.weight", "up.bias")}
        self.activation = ACT2FN[activation]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tensors = {role: None if tensor is None else tensor.to(x) for role, tensor in self.tensors.items()}
        if tensors["norm.weight"] is not None:
            x = functional.layer_norm(x, x.shape[-1:], tensors["norm.weight"], tensors["norm.bias"], 1e-5)
        narrow = self.activation(functional.linear(x, tensors["down.weight"], tensors["down.bias"]))
        return functional.linear(narrow, tensors["up.weight"], tensors["up.bias"])


def activation_of(model: nn.Module) -> str:
    for key in ("hidden_act", "activation_function", "dense_act_fn"):
        if hasattr(model.config, key):
            return getattr(model.config, key)
    raise AdapterError("expected a config that names an activation, found none")


def follow(block: nn.Module, spot: Spot, bottleneck: Bottleneck) -> None:
    """The output y of a linear becomes y + bottleneck(y)."""
    on_output(block.get_submodule(spot.path), lambda _, output: output + bottleneck(output))


def run_beside_feed_forward(block: nn.Module, roles: dict[str, Spot], bottleneck: Bottleneck, scale: float = 1.0) -> None:
    """What the feed-forward reads, through the bottleneck and times `scale`, is added to what it gives."""
    read: list[torch.Tensor] = []
    on_input(block.get_submodule(roles["feed_forward.up"].path), lambda call: read.append(next(iter(call.values()))))
    on_output(block.get_submodule(roles["feed_forward.down"].path), lambda _, output: output + scale * bottleneck(read.pop()).view(output.shape))


def attach_bottlenecks(model: nn.Module, family: Family, adapter: Adapter) -> set[str]:
    activation = adapter.options["activation"]
    activation = activation_of(model) if activation == "model" else activation
    scale = float(adapter.options.get("scale", 1))  # older adapters have none
    for stack in family.stacks:
        for number, block in enumerate(blocks_of(model, stack)):
            name = f"{stack.name}.{number}.adapter"
            for place, role in (("after_attention", "attention.output"), ("after_cross_attention", "cross_attention.output"),
                                ("after_feed_forward", "feed_forward.down")):
                if adapter.has(f"{name}.{place}."):
                    follow(block, stack.roles[role], Bottleneck(adapter, f"{name}.{place}", activation))
            if adapter.has(f"{name}.parallel."):
                run_beside_feed_forward(block, stack.roles, Bottleneck(adapter, f"{name}.parallel", activation), scale)
    return {name for name in adapter.tensors if ".adapter." in name}
