# SPDX-License-Identifier: Apache-2.0
"""Folders and lists of images -> rows, and image files -> pixels. A row's text is the path of its image."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import InputError, Place, shorten
from .forms import Example, Form
from .labels import LabelRule
from .rows import Row, Rows, read_lines

TASK = "image_classification"
RESIZES = ("squash", "crop")
COLORS = {"rgb": "RGB", "gray": "L"}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
NORMALIZATIONS = {
    "half": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0,), (1.0,)),
}
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class ImageForm(Form):
    """Rows with the columns image (the file), label and id."""

    def format_of(self, path: Path, chosen: str | None) -> str:
        return ""

    def companions(self, path: Path) -> list[Path]:
        images = [Path(row.get("image")) for row in self.rows(path, "") if isinstance(row, Row)]
        return [image for image in images if image.is_file()]

    def example(self, row: Row) -> Example:
        return Example(row.place, row.get("id"), row.get("image"), label=self.rule.parse(row.get("label"), row.place))


@dataclass(frozen=True)
class FolderForm(ImageForm):
    """A sub-folder for every class, below train/, validation/ and test/ or in one folder. Names that start with a dot
    are not read."""

    def find_files(self, folder: Path) -> dict[str, list[Path]]:
        if not folder.is_dir():
            raise InputError(f"{folder}: expected a folder (--folder), found none")
        names = [path.name for path in _visible(folder)]
        if "train" not in names:
            return {"train": [folder]}
        if not set(names) <= set(_SPLIT_FOLDERS):
            raise InputError(f"{folder}: expected beside train only {list(_SPLIT_FOLDERS)}, found {shorten(names)}")
        found: dict[str, list[Path]] = {}
        for name in sorted(names):
            found.setdefault(_SPLIT_FOLDERS[name], []).append(folder / name)
        return found

    def rows(self, path: Path, file_format: str) -> Rows:
        if not path.is_dir():
            raise InputError(f"{path}: expected a folder with a sub-folder for every class, found none")
        for of_class in _visible(path):
            files = [file for file in sorted(of_class.rglob("*")) if file.is_file() and not file.name.startswith(".")]
            if not files:
                yield Place(of_class, 0).error("expected a folder of images, found none")
            for file in files:
                if file.suffix.lower() not in _SUFFIXES:
                    yield Place(file, 0).error(f"expected an image ({', '.join(_SUFFIXES)}), found {file.suffix!r}")
                    continue
                fields = {"image": str(file), "label": of_class.name, "id": file.relative_to(path).as_posix()}
                yield Row(Place(file, 0), fields, None)


@dataclass(frozen=True)
class ListForm(ImageForm):
    """Lists as of VTAB-1K: in every line a path, relative to the list, and after the last space its class."""

    def rows(self, path: Path, file_format: str) -> Rows:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        for line in read_lines(path):
            if line.error is not None:
                yield line.error
                continue
            name, _, label = line.text.strip().rpartition(" ")
            image = path.parent / name.strip()
            if not name:
                yield line.place.error(f"expected the path of an image, a space and a class, found {line.text!r}")
            elif not image.is_file():
                yield line.place.error(f"expected the image {image}, found no such file")
            else:
                yield Row(line.place, {"image": str(image), "label": label, "id": name.strip()}, None)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


FORMS: dict[str, ImageForm] = {
    "image_folder": FolderForm((TASK,), rule=LabelRule("classification")),
    "vtab": ListForm(
        (TASK,),
        {"train": ("train800.txt",), "validation": ("val200.txt",), "test": ("test.txt",)},
        LabelRule("classification"),
    ),
}


@dataclass(frozen=True)
class ImageDecoder:
    """An image file -> [size, size, channels] bytes. Normalisation is left to the reader of the dataset."""

    size: int
    resize: str
    short_side: int  # before the crop
    filter: Image.Resampling
    color: str
    mean: Sequence[float]
    std: Sequence[float]

    @staticmethod
    def from_options(options: argparse.Namespace) -> ImageDecoder:
        """Fixes the options that are left open, so that they are recorded."""
        options.image_size = options.image_size or 224
        options.resize = options.resize or "squash"
        options.interpolation = options.interpolation or "bilinear"
        options.color = options.color or "rgb"
        options.normalize = options.normalize or "half"
        if options.short_side is not None and options.resize != "crop":
            raise InputError("--short-side: expected together with --resize crop")
        short_side = options.short_side or options.image_size
        if options.image_size < 1 or short_side < options.image_size:
            raise InputError(
                f"--image-size, --short-side: expected at least 1, and a short side of at least the image size, found "
                f"{options.image_size} and {short_side}"
            )
        mean, std = _channels(options.normalize, 3 if options.color == "rgb" else 1)
        return ImageDecoder(
            options.image_size,
            options.resize,
            short_side,
            FILTERS[options.interpolation],
            COLORS[options.color],
            mean,
            std,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size, self.size, len(self.mean)

    def attributes(self) -> dict[str, str | int]:
        none = {"tokenizer_digest": "", "pad_token_id": 0, "vocab_size": 0, "max_length": 0}
        return none | {"pixel_mean": json.dumps(list(self.mean)), "pixel_std": json.dumps(list(self.std))}

    def decode(self, path: str) -> np.ndarray:
        """Throws: ValueError saying what is wrong with the file."""
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"{path}: expected 8 bits a channel, found mode {image.mode}; convert it")
                pixels = self._fit(image.convert(self.color))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: expected an image, found one that cannot be decoded ({error})") from None
        return np.asarray(pixels, dtype=np.uint8).reshape(self.shape)

    def _fit(self, image: Image.Image) -> Image.Image:
        if self.resize == "squash":
            return image.resize((self.size, self.size), self.filter)
        # Rounded as torchvision's Resize and CenterCrop do.
        shorter = min(image.size)
        width, height = (int(self.short_side * side / shorter) for side in image.size)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.resize((width, height), self.filter).crop((left, top, left + self.size, top + self.size))


def _channels(text: str, num_channels: int) -> tuple[list[float], list[float]]:
    if text in NORMALIZATIONS:
        both = [list(values) for values in NORMALIZATIONS[text]]
    else:
        try:
            both = [[float(value) for value in values.split(",")] for values in text.split(":")]
        except ValueError:
            both = []
    both = [values * num_channels if len(values) == 1 else values for values in both]
    good = len(both) == 2 and all(len(values) == num_channels for values in both)
    if not good or not all(math.isfinite(value) for value in both[0] + both[1]) or min(both[1]) <= 0:
        raise InputError(
            f"--normalize: expected one of {list(NORMALIZATIONS)}, or means and deviations above 0 of {num_channels} "
            f"channels as in 0.5,0.5,0.5:0.2,0.2,0.2, found {text!r}"
        )
    return both[0], both[1]
