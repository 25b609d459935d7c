# SPDX-License-Identifier: Apache-2.0
"""Raw label values -> numbers: class indices (int64), targets (float32), or a 0 or 1 for every label (float32). The
order of the classes is recorded."""

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

    task: str  # "classification", "regression" or "multi_label"
    names: list[str] | None = None  # order of the classes, if it is fixed
    positive_above: float | None = None  # rating -> 1 if above, else 0
    drop_within: float = 0.0  # rows whose rating is nearer than this to `positive_above` are dropped
    separator: str = ","  # of the labels of a row, where they are one text
    names_by_index: bool = False  # a whole number stands for the name at its place
    bounds: tuple[float, float] = (-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))

    def parse(self, value: Any, place: Place) -> str | float | list[str] | None:
        """A class name, a target, a row's labels, or None for a row to drop."""
        if self.task == "regression":
            return self._number(value, place)
        if self.task == "multi_label":
            return self._several(value, place)
        if self.positive_above is not None:
            rating = self._number(value, place)
            if abs(rating - self.positive_above) < self.drop_within:
                return None
            return self.binary_names()[int(rating > self.positive_above)]
        return self._name(value, place)

    def binary_names(self) -> list[str]:
        return self.names if self.names is not None else ["negative", "positive"]

    def class_names(self, values: Sequence[Any]) -> list[str]:
        """The order of the classes: as given, or sorted (as numbers where all are whole numbers)."""
        if self.task == "regression":
            return []
        if self.positive_above is not None:
            return self.binary_names()
        if self.names is not None:
            return self.names
        distinct = {name for value in values for name in (value if isinstance(value, list) else [value])}
        if all(_is_whole_number(name) for name in distinct):
            return sorted(distinct, key=int)
        return sorted(distinct)

    def check(self) -> None:
        fewest = 1 if self.task == "multi_label" else 2
        if self.task == "regression" and self.names is not None:
            raise InputError("--label-names makes classes: use it with --task classification or multi_label")
        if self.task != "classification" and self.positive_above is not None:
            raise InputError("--positive-above makes classes: use it with --task classification")
        if self.names is not None and (
            len(self.names) < fewest or len(set(self.names)) != len(self.names) or "" in self.names
        ):
            at_least = "two different names" if fewest == 2 else "one name, none twice"
            raise InputError(f"--label-names: expected at least {at_least}, found {self.names}")
        if self.positive_above is None and self.drop_within:
            raise InputError("--drop-within: expected together with --positive-above")
        if self.drop_within < 0:
            raise InputError(f"--drop-within: expected at least 0, found {self.drop_within}")
        if self.positive_above is not None and self.names is not None and len(self.names) != 2:
            raise InputError(f"--positive-above: expected two --label-names (negative first), found {self.names}")

    def _name(self, value: Any, place: Place) -> str:
        name = _class_name(value, place)
        if self.names is None or name in self.names:
            return name
        if self.names_by_index and _is_whole_number(name) and 0 <= int(name) < len(self.names):
            return self.names[int(name)]
        raise place.error(f"expected a label out of {self.names}, found {name!r}; mend the row or --label-names")

    def _several(self, value: Any, place: Place) -> list[str]:
        if isinstance(value, str):
            value = value.split(self.separator) if value.strip() else []
        if not isinstance(value, list):
            raise place.error(f"expected a list of labels or a text, found {shorten(value)}")
        names = [self._name(item, place) for item in value]
        if len(set(names)) != len(names):
            raise place.error(f"expected every label once, found {names}")
        return names

    def _number(self, value: Any, place: Place) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or not self.bounds[0] <= number <= self.bounds[1]:
            limits = "" if self.bounds == LabelRule.bounds else f" in [{self.bounds[0]:g}, {self.bounds[1]:g}]"
            raise place.error(f"expected a finite number{limits} as label, found {shorten(value)}")
        return number


def to_array(task: str, names: Sequence[str], values: Sequence[Any]) -> np.ndarray:
    """Labels of one split as the file keeps them."""
    if task == "regression":
        return np.asarray(values, dtype=np.float32)
    index = {name: position for position, name in enumerate(names)}
    if task == "classification":
        return np.asarray([index[value] for value in values], dtype=np.int64)
    array = np.zeros((len(values), len(names)), dtype=np.float32)
    for row, labels in enumerate(values):
        array[row, [index[name] for name in labels]] = 1
    return array


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
