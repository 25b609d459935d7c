# SPDX-License-Identifier: Apache-2.0
"""The adapter folder: adapter.json and adapter.safetensors."""

from __future__ import annotations

import configparser
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

FORMAT, VERSION = "espalier-adapter", 1


class AdapterError(ValueError):
    """The folder is no adapter, or not one for this model."""


@dataclass(frozen=True)
class Adapter:
    method: str
    options: dict[str, str]  # of the method, by the last part of their key: "reduction"
    lora_options: dict[str, str]  # of LoRA, which MEFT may have inside
    pooling: str  # how the task head reads the backbone
    tensors: dict[str, torch.Tensor]  # by canonical name

    def integer(self, key: str) -> int:
        return int(self.options[key])

    def number(self, key: str) -> float:
        return float(self.options[key])

    def flag(self, key: str) -> bool:
        return self.options[key] == "true"

    def lora_scale(self) -> float:
        rank = int(self.lora_options["rank"])
        is_stabilized = self.lora_options.get("rank_stabilized") == "true"
        return float(self.lora_options["alpha"]) / (rank**0.5 if is_stabilized else rank)

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.tensors)


def read_adapter(folder: str | Path) -> Adapter:
    folder = Path(folder)
    description = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    found = (description.get("format"), description.get("format_version"))
    if found != (FORMAT, VERSION):
        raise AdapterError(f"{folder}/adapter.json: expected format {FORMAT} version {VERSION}, found {found}")
    file = folder / description["tensors"]["file"]
    if file.stat().st_size != description["tensors"]["bytes"]:
        raise AdapterError(f"{file}: expected {description['tensors']['bytes']} bytes, found {file.stat().st_size}; export it again")
    options = configparser.ConfigParser(interpolation=None)
    options.read_string(description["options"])
    own, lora = (dict(options[section]) if options.has_section(section) else {}
                 for section in (f"peft.{description['method']}", "peft.lora"))
    return Adapter(description["method"], own, lora, options.get("model", "pooling", fallback="auto"), load_file(file))
