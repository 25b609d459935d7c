# SPDX-License-Identifier: Apache-2.0
"""Raw label values -> numbers: class indices (int64) or targets (float32). The class order is recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError, Place, shorten


@dataclass(frozen=True)
class LabelRule:
    """How a label is read."""

    task: str  # "classification" or "regression"
    names: list[str] | None = None  # order of the classes, if the user fixed it
    positive_above: float | None = None  # rating -> 1 if above, else 0
    drop_within: float = 0.0  # rows whose rating is nearer than this to `positive_above` are dropped

    def parse(self, value: Any, place: Place) -> str | float | None:
        """A class name, a target, or None for a row to drop."""
        if self.task == "regression":
            return _number(value, place)
        if self.positive_above is not None:
            rating = _number(value, place)
            if abs(rating - self.positive_above) < self.drop_within:
                return None
            return self.binary_names()[int(rating > self.positive_above)]
        name = _class_name(value, place)
        if self.names is not None and name not in self.names:
            raise place.error(f"expected a label out of {self.names}, found {name!r}; mend the row or --label-names")
        return name

    def binary_names(self) -> list[str]:
        return self.names if self.names is not None else ["negative", "positive"]

    def class_names(self, values: Sequence[str]) -> list[str]:
        """The order of the classes: as given, or sorted (as numbers where all are whole numbers)."""
        if self.positive_above is not None:
            return self.binary_names()
        if self.names is not None:
            return self.names
        distinct = set(values)
        if all(_is_whole_number(name) for name in distinct):
            return sorted(distinct, key=int)
        return sorted(distinct)

    def check(self) -> None:
        if self.task == "regression" and (self.names is not None or self.positive_above is not None):
            raise InputError("--label-names and --positive-above make classes: use them with --task classification")
        if self.names is not None and (
            len(self.names) < 2 or len(set(self.names)) != len(self.names) or "" in self.names
        ):
            raise InputError(f"--label-names: expected at least two different names, found {self.names}")
        if self.positive_above is None and self.drop_within:
            raise InputError("--drop-within: expected together with --positive-above")
        if self.drop_within < 0:
            raise InputError(f"--drop-within: expected at least 0, found {self.drop_within}")
        if self.positive_above is not None and self.names is not None and len(self.names) != 2:
            raise InputError(f"--positive-above: expected two --label-names (negative first), found {self.names}")


def to_array(task: str, names: Sequence[str], values: Sequence[Any]) -> np.ndarray:
    """Labels of one split as the file keeps them."""
    if task == "regression":
        return np.asarray(values, dtype=np.float32)
    index = {name: position for position, name in enumerate(names)}
    return np.asarray([index[value] for value in values], dtype=np.int64)


def _number(value: Any, place: Place) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or abs(number) > float(np.finfo(np.float32).max):
        raise place.error(f"expected a finite number as label, found {shorten(value)}")
    return number


def _class_name(value: Any, place: Place) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise place.error(f"expected a class name or a whole number as label, found {shorten(value)}")


def _is_whole_number(name: str) -> bool:
    digits = name.removeprefix("-")
    return digits.isascii() and digits.isdigit() and str(int(name)) == name
