# SPDX-License-Identifier: Apache-2.0
"""The digest that a dataset file carries is of its own content, however that was written."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import unittest
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
from espalier_prepare.store import StreamedArray, write_dataset  # noqa: E402


def digest_of(path: Path) -> str:
    """As docs/dataset_format.md defines it, from the finished file."""
    with h5py.File(path) as file:
        attributes = {name: value if isinstance(value, str) else int(value) for name, value in file.attrs.items()}
        del attributes["content_digest"]
        arrays = {
            f"{split}/{name}": [array.dtype.str, list(array.shape), hashlib.sha256(array[()].tobytes()).hexdigest()]
            for split, group in file.items()
            for name, array in group.items()
        }
    content = json.dumps({"arrays": arrays, "attributes": attributes}, sort_keys=True)
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


class StoreTest(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.file = Path(scratch.name) / "data.h5"
        self.attributes: dict[str, str | int] = {"task": "causal_lm", "label_names": '["\u00fc"]', "num_labels": 2}
        self.features = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
        self.arrays = {"id_bytes": np.empty(0, dtype=np.uint8), "labels": np.array([[1, 0], [0, 1]], dtype=np.int64)}

    def write(self, **more: np.ndarray | StreamedArray) -> str:
        write_dataset(self.file, self.attributes, {"train": self.arrays | more, "test": self.arrays})
        with h5py.File(self.file) as file:
            found = file.attrs["content_digest"]
        self.assertEqual(found, digest_of(self.file))
        return found

    def test_the_digest_is_of_what_the_file_says(self) -> None:
        first = self.write(vis_feats=self.features)
        self.assertEqual(self.write(vis_feats=self.features), first)
        self.features[2, 1, 1] += 1
        others = {self.write(vis_feats=self.features)}
        others.add(self.write(vis_feats=self.features.reshape(3, 4)))
        others.add(self.write(vis_feats=self.features.view(np.int32)))
        others.add(self.write(vis_boxes=self.features))
        self.attributes["num_labels"] = 3
        others.add(self.write(vis_boxes=self.features))
        self.assertEqual(len(others - {first}), 5)

    def test_a_streamed_array_counts_as_it_is_stored(self) -> None:
        whole = self.write(vis_feats=self.features)
        # Blocks of another type, and not contiguous, are converted on their way into the file.
        blocks = [np.asfortranarray(block, dtype=np.float64) for block in self.features]
        streamed = StreamedArray(self.features.shape, np.dtype(np.float32), lambda: iter(blocks))
        self.assertEqual(self.write(vis_feats=streamed), whole)

    def test_the_order_of_writing_does_not_count(self) -> None:
        first = self.write(vis_feats=self.features)
        self.arrays = dict(reversed(self.arrays.items()))
        self.attributes = dict(reversed(self.attributes.items()))
        self.assertEqual(self.write(vis_feats=self.features), first)


if __name__ == "__main__":
    unittest.main()
