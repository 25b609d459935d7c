# SPDX-License-Identifier: Apache-2.0
"""The adapter folder: adapter.json and adapter.safetensors."""

from __future__ import annotations

import configparser
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
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
    base_model_digest: str = ""  # of the backbone's stored files, as `espalier inspect` prints it; nothing here compares it

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
    """Raises AdapterError for a folder that is no adapter, of another version, or damaged."""
    folder = Path(folder)
    try:
        description = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterError(f"{folder}: expected an adapter folder, as `espalier export` writes it, found none ({error.strerror})") from error
    except ValueError as error:
        raise AdapterError(f"{folder}/adapter.json: expected JSON, found {error}") from error
    found = (description.get("format"), description.get("format_version")) if isinstance(description, dict) else None
    if found != (FORMAT, VERSION):
        raise AdapterError(f"{folder}/adapter.json: expected format {FORMAT} version {VERSION}, found {found}")
    try:
        return read_described(folder, description)
    except OSError as error:
        raise AdapterError(f"{error.filename}: expected the adapter's tensors, found none ({error.strerror}); export it again") from error
    except KeyError as error:
        raise AdapterError(f"{folder}/adapter.json: expected the key {error}, found none; export it again") from error
    except (configparser.Error, SafetensorError) as error:
        raise AdapterError(f"{folder}: expected what `espalier export` writes, found {error}; export it again") from error


def read_described(folder: Path, description: dict) -> Adapter:
    file = folder / description["tensors"]["file"]
    if file.stat().st_size != description["tensors"]["bytes"]:
        raise AdapterError(f"{file}: expected {description['tensors']['bytes']} bytes, found {file.stat().st_size}; export it again")
    options = configparser.ConfigParser(interpolation=None)
    options.read_string(description["options"])
    own, lora = (dict(options[section]) if options.has_section(section) else {}
                 for section in (f"peft.{description['method']}", "peft.lora"))
    return Adapter(description["method"], own, lora, options.get("model", "pooling", fallback="auto"), load_file(file),
                   description.get("base_model_digest", ""))
