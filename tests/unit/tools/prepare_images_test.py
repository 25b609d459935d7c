# SPDX-License-Identifier: Apache-2.0
"""Image folders and lists as of VTAB-1K: splits, classes, resize, crop, channels, normalisation, broken images."""

from __future__ import annotations

import hashlib
import json
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image
from prepare_case import PrepareTest

from espalier_prepare import images, store

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


class PrepareImagesTest(PrepareTest):
    def setUp(self) -> None:
        super().setUp()
        self.data = self.folder / "data"
        self.with_tokenizer = False

    def prepare(self, *arguments: object) -> tuple[int, str, str]:
        if self.with_tokenizer:
            return super().prepare(*arguments)
        return self.run_main("--image-size", 4, *arguments)

    def image(self, name: str, color: tuple[int, ...] | int = RED, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, color).save(path)
        return path

    def folder_of_two_classes(self) -> None:
        self.image("dog/1.png", RED)
        self.image("cat/b/2.jpg", BLUE)
        self.image("cat/1.png", GREEN)

    def test_a_folder_for_every_class_makes_rows_in_order(self) -> None:
        self.folder_of_two_classes()
        (self.data / ".DS_Store").write_bytes(b"x")
        stdout = self.prepared("--dataset", "image_folder", "--folder", self.data)
        self.assertIn("cat 2, dog 1", stdout)
        self.assertEqual(self.attribute("task"), "image_classification")
        self.assertEqual(json.loads(self.attribute("label_names")), ["cat", "dog"])
        self.assertEqual(self.attribute("num_labels"), 2)
        self.assertEqual(self.ids("train"), ["cat/1.png", "cat/b/2.jpg", "dog/1.png"])
        self.assertEqual(self.labels("train").tolist(), [0, 0, 1])
        pixels = self.array("train", "pixels")
        self.assertEqual((pixels.shape, pixels.dtype), ((3, 4, 4, 3), np.uint8))
        self.assertTrue((pixels[0] == GREEN).all() and (pixels[2] == RED).all())
        self.assertEqual(self.arrays("train"), {"pixels", "labels", "id_bytes", "id_offsets"})
        for name in ("vocab_size", "pad_token_id", "max_length"):
            self.assertEqual(self.attribute(name), 0)
        self.assertEqual(self.attribute("tokenizer_digest"), "")
        digest = hashlib.sha256(b"".join((self.data / name).read_bytes() for name in self.ids("train"))).hexdigest()
        self.assertEqual(self.attribute("source_digest"), "sha256:" + digest)

    def test_the_same_images_give_the_same_bytes_in_any_folder(self) -> None:
        self.folder_of_two_classes()
        self.prepared("--dataset", "image_folder", "--folder", self.data)
        first = self.output.read_bytes()
        moved = self.data.rename(self.folder / "moved")
        self.prepared("--dataset", "image_folder", "--folder", moved)
        self.assertEqual(self.output.read_bytes(), first)

    def test_split_folders_share_their_classes(self) -> None:
        for name in ("train/cat/1.png", "train/dog/2.png", "val/dog/3.png", "test/eel/4.png"):
            self.image(name)
        self.prepared("--dataset", "image_folder", "--folder", self.data)
        self.assertEqual(json.loads(self.attribute("label_names")), ["cat", "dog", "eel"])
        self.assertEqual({name: self.labels(name).tolist() for name in ("train", "validation", "test")},
                         {"train": [0, 1], "validation": [1], "test": [2]})  # fmt: skip
        self.image("extra/cat/1.png")
        self.output.unlink()
        self.expect(self.refused("--dataset", "image_folder", "--folder", self.data), "beside train only", "'extra'")

    def test_a_hash_of_the_path_divides_a_folder(self) -> None:
        names = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(12)]
        for name in names:
            self.image(name)
        self.prepared("--dataset", "image_folder", "--folder", self.data, "--split-hash-prefix", "p:")
        expected: dict[str, list[str]] = {}
        for name in sorted(names):
            bucket = int(hashlib.sha256(f"p:{name}".encode()).hexdigest()[:8], 16) % 10
            expected.setdefault({8: "validation", 9: "test"}.get(bucket, "train"), []).append(name)
        self.assertGreater(len(expected), 1)
        self.assertEqual({split: self.ids(split) for split in expected}, expected)

    def test_lists_of_vtab_name_images_and_classes(self) -> None:
        for number in range(4):
            self.image(f"images/a {number}.png", RED if number else BLUE)
        lists = {
            "train800.txt": "images/a 0.png 10\nimages/a 1.png 2\n",
            "val200.txt": "images/a 2.png 2\n",
            "train800val200.txt": "images/a 0.png 10\nimages/a 1.png 2\nimages/a 2.png 2\n",
            "test.txt": "images/a 3.png 10\n",
        }
        for name, content in lists.items():
            (self.data / name).write_text(content)
        self.prepared("--dataset", "vtab", "--folder", self.data)
        self.assertEqual(json.loads(self.attribute("label_names")), ["2", "10"])
        self.assertEqual(self.labels("train").tolist(), [1, 0])
        self.assertEqual((self.ids("validation"), self.ids("test")), (["images/a 2.png"], ["images/a 3.png"]))
        self.assertTrue((self.array("train", "pixels")[0] == BLUE).all())
        both = [self.data / "train800val200.txt", "--test", self.data / "test.txt"]
        self.prepared("--dataset", "vtab", "--train", *both)
        self.assertEqual(self.labels("train").tolist(), [1, 0, 0])

    def test_squash_keeps_all_and_crop_keeps_the_centre(self) -> None:
        picture = np.zeros((4, 12, 3), dtype=np.uint8)  # a third red, a third green, a third blue
        picture[:, :4], picture[:, 4:8], picture[:, 8:] = RED, GREEN, BLUE
        self.image("cat/1.png")
        Image.fromarray(picture).save(self.data / "cat" / "1.png")
        self.image("dog/1.png")
        arguments = ["--dataset", "image_folder", "--folder", self.data]
        self.prepared(*arguments, "--resize", "crop")
        self.assertTrue((self.array("train", "pixels")[0] == GREEN).all())
        self.prepared(*arguments, "--resize", "crop", "--short-side", 8)
        self.assertTrue((self.array("train", "pixels")[0, :, 1:3] == GREEN).all())
        for how in ("bilinear", "bicubic"):
            self.prepared(*arguments, "--interpolation", how)
            oracle = Image.fromarray(picture).resize((4, 4), Image.Resampling[how.upper()])
            self.assertTrue((self.array("train", "pixels")[0] == np.asarray(oracle)).all(), how)
        self.assertEqual(json.loads(self.attribute("prepare_options"))["resize"], "squash")

    def test_every_kind_of_image_becomes_the_channels_asked_for(self) -> None:
        self.image("cat/gray.png", 7, mode="L")
        self.image("cat/palette.gif", 0, mode="P")
        self.image("cat/transparent.png", (1, 2, 3, 4), mode="RGBA")
        self.image("dog/1.png", RED)
        arguments = ["--dataset", "image_folder", "--folder", self.data]
        self.prepared(*arguments)
        pixels = self.array("train", "pixels")
        self.assertTrue((pixels[0] == 7).all() and (pixels[2] == (1, 2, 3)).all())
        self.prepared(*arguments, "--color", "gray")
        pixels = self.array("train", "pixels")
        self.assertEqual(pixels.shape, (4, 4, 4, 1))
        self.assertTrue((pixels[0] == 7).all() and (pixels[3] == 76).all())  # 0.299 * 255
        self.assertEqual(json.loads(self.attribute("pixel_mean")), [0.5])

    def test_normalisation_is_recorded_for_every_channel(self) -> None:
        self.folder_of_two_classes()
        for how, mean, std in (
            (None, [0.5] * 3, [0.5] * 3),
            ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ("none", [0.0] * 3, [1.0] * 3),
            ("0.1,0.2,0.3:0.4", [0.1, 0.2, 0.3], [0.4] * 3),
        ):
            self.prepared("--dataset", "image_folder", "--folder", self.data, *([] if how is None else ["--normalize", how]))
            self.assertEqual(json.loads(self.attribute("pixel_mean")), mean)
            self.assertEqual(json.loads(self.attribute("pixel_std")), std)
        self.output.unlink()
        for how in ("gaussian", "0.5,0.5:0.5", "0.5:0", "0.5", "nan:1"):
            stderr = self.refused("--dataset", "image_folder", "--folder", self.data, "--normalize", how)
            self.expect(stderr, "--normalize", repr(how))

    def broken_images(self) -> list[object]:
        self.folder_of_two_classes()
        whole = self.image("dog/cut.png", size=(64, 64)).read_bytes()
        (self.data / "dog/cut.png").write_bytes(whole[: len(whole) // 2])
        (self.data / "dog/text.png").write_text("no image")
        (self.data / "dog/notes.doc").write_text("no image")
        self.image("cat/deep.png", 700, mode="I;16")
        (self.data / "empty").mkdir()
        return ["--dataset", "image_folder", "--folder", self.data]

    def test_broken_images_are_all_named(self) -> None:
        arguments = self.broken_images()
        self.expect(self.refused(*arguments), "dog/notes.doc: expected an image", "empty: expected a folder of images")
        (self.data / "dog/notes.doc").unlink()
        (self.data / "empty").rmdir()
        stderr = self.refused(*arguments)
        self.expect(stderr, "dog/cut.png: expected an image", "dog/text.png: expected an image", "3 malformed rows")
        self.expect(stderr, "cat/deep.png: expected 8 bits a channel")

    def test_broken_images_are_left_out_and_counted_if_asked(self) -> None:
        self.prepared(*self.broken_images(), "--drop-malformed")
        self.assertEqual(self.ids("train"), ["cat/1.png", "cat/b/2.jpg", "dog/1.png"])
        self.assertEqual(len(self.array("train", "pixels")), 3)
        self.assertTrue((self.array("train", "pixels")[2] == RED).all())
        malformed = json.loads(self.attribute("prepare_counts"))["malformed"]
        self.assertEqual(malformed, {"cut.png": 1, "text.png": 1, "notes.doc": 1, "deep.png": 1, "empty": 1})

    def test_images_are_written_one_by_one_as_if_all_were_held(self) -> None:
        self.folder_of_two_classes()
        arguments = ["--dataset", "image_folder", "--folder", self.data]
        self.prepared(*arguments)
        write, found = store.write_dataset, self.output.read_bytes()

        def write_held(path: Path, attributes: Mapping[str, Any], splits: Mapping[str, Mapping[str, Any]]) -> None:
            pixels = splits["train"]["pixels"]
            self.assertIsInstance(pixels, store.StreamedArray)
            held = {split: {**arrays, "pixels": np.stack(list(arrays["pixels"].blocks()))} for split, arrays in splits.items()}
            write(path, attributes, held)

        with mock.patch.object(store, "write_dataset", write_held):
            self.prepared(*arguments)
        self.assertEqual(self.output.read_bytes(), found)

    def test_an_image_that_changes_meanwhile_is_named(self) -> None:
        self.folder_of_two_classes()
        changed, decode = self.data / "dog/1.png", images.ImageDecoder.decode

        def decode_and_spoil(decoder: images.ImageDecoder, path: str) -> np.ndarray:
            pixels = decode(decoder, path)
            if Path(path) == changed:
                changed.write_text("no image")
            return pixels

        with mock.patch.object(images.ImageDecoder, "decode", decode_and_spoil):
            stderr = self.refused("--dataset", "image_folder", "--folder", self.data)
        self.expect(stderr, f"{changed}: expected an image", "another file a moment ago")

    def test_malformed_lines_of_a_list_are_named(self) -> None:
        self.image("1.png")
        (self.data / "broken.png").write_text("no image")
        path = self.data / "train800.txt"
        path.write_bytes(b"1.png 0\n1.png\n\n2.png 1\n\xff.png 1\n")
        test = ["--dataset", "vtab", "--train", path]
        stderr = self.refused(*test)
        self.expect(stderr, "train800.txt:2: expected the path", "train800.txt:3:", "train800.txt:4: expected the image")
        self.expect(stderr, "train800.txt:5: expected UTF-8", "4 malformed rows")
        path.write_text("1.png 0\nbroken.png 1\n")
        self.expect(self.refused(*test), "train800.txt:2:", "broken.png: expected an image")

    def test_options_that_contradict_each_other_are_refused(self) -> None:
        self.folder_of_two_classes()
        arguments = ["--dataset", "image_folder", "--folder", self.data]
        for options, pieces in (
            (["--task", "image_classification"], ["--dataset", "'image_folder', 'vtab'"]),
            ([*arguments, "--tokenizer", self.tokenizer], ["--tokenizer: not used"]),
            ([*arguments, "--task", "seq2seq"], ["--task", "image_classification"]),
            ([*arguments, "--short-side", 8], ["--short-side", "--resize crop"]),
            ([*arguments, "--resize", "crop", "--short-side", 3], ["--short-side", "found 4 and 3"]),
            ([*arguments, "--text", "x"], ["--text", "without --dataset"]),
            (["--dataset", "image_folder", "--folder", self.data / "none"], ["none", "expected a folder"]),
            (["--dataset", "vtab", "--folder", self.data], ["train800.txt"]),
            (["--dataset", "image_folder", "--folder", self.data / "cat/b"], ["a folder of images"]),
        ):
            if options[0] == "--task":
                options = [*options, "--train", self.data]
            self.expect(self.refused(*options), *pieces)
        table = self.write("t.tsv", "text\tlabel\na\tx\nb\ty\n")
        columns = ["--train", table, "--text", "text", "--label", "label"]
        self.expect(self.refused(*columns), "--tokenizer: expected for --task classification")
        self.with_tokenizer = True
        self.expect(self.refused(*columns, "--resize", "crop"), "--resize: not used by --task classification")


if __name__ == "__main__":
    unittest.main()
