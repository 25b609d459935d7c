# SPDX-License-Identifier: Apache-2.0
"""The one golden file of a method: written, or compared with what is stored. Shared by the makers tools/make_golden_<method>.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
TOLERANCE = 1e-5


def write_or_check(folder: str, make: Callable[[], dict[str, torch.Tensor]]) -> int:
    """Exit code of a maker: writes what `make` gives to tests/golden/<folder>/golden.safetensors, or with --check names what differs."""
    torch.set_num_threads(1)
    file = GOLDEN / folder / "golden.safetensors"
    made = make()
    if "--check" in sys.argv[1:]:
        stored = load_file(file)
        differing = sorted(name for name in made.keys() | stored.keys() if name not in made or name not in stored or not torch.allclose(
            made[name], stored[name], rtol=TOLERANCE, atol=TOLERANCE))
        print("\n".join(f"{file}: {name} differs" for name in differing))
        return 1 if differing else 0
    file.parent.mkdir(exist_ok=True)
    save_file(made, file)
    return 0
