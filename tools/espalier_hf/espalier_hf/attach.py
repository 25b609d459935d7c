# SPDX-License-Identifier: Apache-2.0
"""attach(): an adapter of any method onto a model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from espalier_hf.adapter import Adapter, AdapterError, read_adapter
from espalier_hf.factors import attach_bottlenecks, attach_factors
from espalier_hf.families import family_of, put_plain
from espalier_hf.last import LowRankAttentionSide
from espalier_hf.lst import LadderSideNetwork
from espalier_hf.meft import attach_meft
from espalier_hf.pooling import pool_by_mean
from espalier_hf.prompt import attach_prompts


def attach(model: nn.Module, adapter: Adapter | str | Path) -> nn.Module:
    """Changes `model`, which must be the backbone that the adapter was trained on with a head of as many labels, so that it computes
    what Espalier computes. For inference: in training mode dropout would differ. Returns the model.

    Raises AdapterError for a folder that is no adapter, and for what does not fit the model, which is then half changed. Shapes are
    compared; whether the weights are those of the training is for the caller to know (README.md)."""
    if not isinstance(adapter, Adapter):
        adapter = read_adapter(adapter)
    try:
        attach_method(model, adapter)
    except KeyError as error:
        raise AdapterError(f"expected an adapter of method {adapter.method} with {error}, found none; export it again") from error
    return model.eval()


def attach_method(model: nn.Module, adapter: Adapter) -> None:
    family = family_of(model)
    taken: set[str] = set()
    if adapter.pooling == "mean":
        pool_by_mean(model, family)
    elif adapter.pooling != "auto":
        raise AdapterError(f"model.pooling: expected auto or mean, found {adapter.pooling}")
    if adapter.method == "lora":
        taken = attach_factors(model, family, adapter, adapter.lora_scale(), "lora")
    elif adapter.method == "rosa":
        taken = attach_factors(model, family, adapter, 1.0, "rosa")
    elif adapter.method == "adapter":
        taken = attach_bottlenecks(model, family, adapter)
    elif adapter.method == "meft":
        taken = attach_meft(model, family, adapter)
    elif adapter.method == "prompt":
        taken = attach_prompts(model, adapter)
    elif adapter.method == "lst":
        LadderSideNetwork(model, family, adapter)
        taken = {name for name in adapter.tensors if name.startswith("lst.")}
    elif adapter.method == "last":
        LowRankAttentionSide(model, family, adapter)
        taken = {name for name in adapter.tensors if name.startswith("last.")}
    elif adapter.method not in ("bitfit", "full", "probe"):
        raise AdapterError(f"expected lora, rosa, adapter, bitfit, prompt, lst, last, meft, full or probe, found {adapter.method}")
    for name, value in adapter.tensors.items():
        if name not in taken:
            put_plain(model, family, name, value)
