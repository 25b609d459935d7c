# SPDX-License-Identifier: Apache-2.0
"""Features of images that another program extracted, from HDF5 files by the image's name: a group with `features` [V, F]
and perhaps `boxes` [V, 4] in pixels beside `img_w` and `img_h`, or just an array [V, F] (docs/preparation.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from .errors import InputError
from .store import StreamedArray

# How a box is stored in the dataset: as the model's formula names its corners, or as extracted.
BOX_ORDERS = {"x1x2y1y2": (0, 2, 1, 3), "x1y1x2y2": (0, 1, 2, 3)}
_OUTSIDE = 1e-5  # of the image, that rounding may place a corner


@dataclass(frozen=True)
class _Image:
    file: int  # which of the files
    name: str  # in it


class FeatureFiles:
    """Every image is looked at once, when a row first asks for it. All must have the shape of the first."""

    def __init__(self, paths: Sequence[Path], box_order: str) -> None:
        self._paths = list(paths)
        self._order = BOX_ORDERS[box_order]
        self._files = []
        for path in self._paths:
            if not path.is_file():
                raise InputError(f"{path}: no such file (--features)")
            try:
                self._files.append(h5py.File(path))
            except OSError as error:
                raise InputError(f"{path}: expected an HDF5 file of features ({error})") from None
        self._known: dict[Sequence[str], _Image | str] = {}  # found, or what is wrong
        self._shape: tuple[int, ...] | None = None
        self._has_boxes: bool | None = None
        self._first = ""  # the image that decided on it

    def find(self, names: Sequence[str]) -> _Image:
        """The image that has one of `names`. Throws: ValueError saying what is missing or wrong with it."""
        if names not in self._known:
            self._known[names] = self._look(names)
        found = self._known[names]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def arrays(self, images_of_rows: Sequence[Sequence[_Image]]) -> dict[str, np.ndarray | StreamedArray]:
        """Every image once, in the order of first use, and for each row which are its own."""
        numbers: dict[_Image, int] = {}
        index = [[numbers.setdefault(image, len(numbers)) for image in images] for images in images_of_rows]
        images = list(numbers)
        arrays: dict[str, np.ndarray | StreamedArray] = {
            "image_index": np.asarray(index, dtype=np.int64),
            "vis_feats": StreamedArray((len(images), *self._shape), np.dtype(np.float32), lambda: self._features(images)),
        }
        if self._has_boxes:
            arrays["vis_boxes"] = np.stack([self._boxes(image) for image in images])
        return arrays

    def _features(self, images: Sequence[_Image]) -> Iterator[np.ndarray]:
        for image in images:
            yield self._array(image)[()].astype(np.float32)

    def _look(self, names: Sequence[str]) -> _Image | str:
        for number, file in enumerate(self._files):
            for name in names:
                if name in file:
                    return self._checked(_Image(number, name))
        where = ", ".join(str(path) for path in self._paths)
        return f"expected features of the image {' or '.join(names)} in {where}, found none"

    def _checked(self, image: _Image) -> _Image | str:
        where = f"{self._paths[image.file]}: {image.name}"
        try:
            array = self._array(image)
            if array is None or array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
                found = "none" if array is None else f"{array.dtype} {list(array.shape)}"
                return f"{where}: expected features [tokens, width] of floating-point numbers, found {found}"
            self._shape = self._shape or array.shape
            if array.shape != self._shape:
                return f"{where}: expected features {list(self._shape)} as of the first image, found {list(array.shape)}"
            if not np.isfinite(array[()].astype(np.float32)).all():
                return f"{where}: expected features that are finite numbers, found NaN or infinity"
            boxes = self._boxes(image)
        except (OSError, KeyError, ValueError, TypeError) as error:
            return f"{where}: expected features and boxes ({error})"
        if self._has_boxes is None:
            self._has_boxes, self._first = boxes is not None, image.name
        if self._has_boxes != (boxes is not None):
            having, lacking = (self._first, image.name) if self._has_boxes else (image.name, self._first)
            return f"{where}: expected boxes for all images or for none, found some of {having} and none of {lacking}"
        return image

    def _array(self, image: _Image) -> h5py.Dataset | None:
        entry = self._files[image.file][image.name]
        return entry if isinstance(entry, h5py.Dataset) else entry.get("features")

    def _boxes(self, image: _Image) -> np.ndarray | None:
        """[V, 4] from 0 to 1. Throws: ValueError."""
        entry = self._files[image.file][image.name]
        if isinstance(entry, h5py.Dataset) or "boxes" not in entry:
            return None
        boxes = np.asarray(entry["boxes"][()], dtype=np.float64)
        if boxes.shape != (self._shape[0], 4):
            raise ValueError(f"boxes [{self._shape[0]}, 4] wanted, {list(boxes.shape)} found")
        if ("img_w" in entry) != ("img_h" in entry):
            raise ValueError("img_w and img_h wanted, one of them found")
        if "img_w" in entry:
            width, height = (float(np.asarray(entry[key][()]).reshape(())) for key in ("img_w", "img_h"))
            if not (width > 0 and height > 0):
                raise ValueError(f"img_w and img_h above 0 wanted, {width:g} and {height:g} found")
            boxes = boxes / (width, height, width, height)
        if not (np.isfinite(boxes).all() and boxes.min() >= -_OUTSIDE and boxes.max() <= 1 + _OUTSIDE):
            raise ValueError("boxes inside the image wanted (in pixels beside img_w and img_h, else from 0 to 1), others found")
        return boxes.clip(0, 1)[:, self._order].astype(np.float32)
