# SPDX-License-Identifier: Apache-2.0
"""Questions, statements and captions about images: published forms, features and boxes, references, what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import unittest
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from prepare_case import PrepareTest, save_tokenizer
from tokenizers import Tokenizer

from espalier_score.command import main as score_main

PROMPTS = ["vqa:", "gqa:", "nlvr:", "caption:", "true", "false", "red", "blue", "green"]


class PrepareVisualTest(PrepareTest):
    def setUp(self) -> None:
        super().setUp()
        save_tokenizer(self.tokenizer, template="t5", words=PROMPTS)
        file = str(self.tokenizer / "tokenizer.json")
        tokenizer = Tokenizer.from_file(file)
        tokenizer.add_special_tokens(["</s>"])  # so that score.py leaves it out
        tokenizer.save(file)
        self.features = self.folder / "features.h5"

    def write_json(self, name: str, value: Any) -> Path:
        return self.write(name, json.dumps(value))

    def write_features(self, images: dict[str, np.ndarray], boxes: Any = None, size: tuple[int, int] | None = (200, 100)) -> None:
        """A group for every image, as VL-T5's tools lay them; without boxes just an array."""
        with h5py.File(self.features, "w") as file:
            for name, values in images.items():
                if boxes is None:
                    file[name] = values
                    continue
                file[f"{name}/features"] = values
                file[f"{name}/boxes"] = boxes
                if size is not None:
                    file[f"{name}/img_w"], file[f"{name}/img_h"] = size

    @staticmethod
    def image(value: float, width: int = 3) -> np.ndarray:
        return np.full((2, width), value, np.float32)

    def visual(self, dataset: str, *arguments: object) -> tuple[object, ...]:
        return ("--dataset", dataset, "--features", self.features, *arguments)

    def vqa_files(self, split: str = "train2014", images: tuple[int, ...] = (7, 7, 9)) -> Path:
        questions = [{"image_id": image, "question": f"a b {number}", "question_id": 100 + number} for number, image in enumerate(images)]
        people = [["red"] * 4 + ["blue"] * 6, ["green"] * 10, ["blue", "red"] * 5]
        annotations = [
            {"question_id": 100 + number, "answers": [{"answer": text} for text in people[number]]} for number in range(len(images))
        ]
        self.write_json(f"v2_mscoco_{split}_annotations.json", {"annotations": annotations})
        return self.write_json(f"v2_OpenEnded_mscoco_{split}_questions.json", {"questions": questions, "data_subtype": split})

    def references(self, split: str) -> list[list[str]]:
        with h5py.File(self.output) as file:
            group = file[split]
            content, offsets = group["reference_bytes"][:].tobytes(), group["reference_offsets"][:]
            texts = [content[a:b].decode() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
            rows = group["reference_row_offsets"][:]
        return [texts[a:b] for a, b in zip(rows[:-1], rows[1:], strict=True)]

    def score(self, generated: list[str], split: str = "validation") -> dict[str, Any]:
        lines = self.write("generated.jsonl", "".join(json.dumps({"row": row, "text": text}) + "\n" for row, text in enumerate(generated)))
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = score_main(["--generated", str(lines), "--dataset", str(self.output), "--split", split, "--tokenizer", str(self.tokenizer)])
        self.assertEqual(code, 0, stderr.getvalue())
        return json.loads(stdout.getvalue())["metrics"]

    def test_vqa_asks_with_its_prompt_and_learns_the_answer_most_gave(self) -> None:
        self.vqa_files()
        self.vqa_files("val2014", (9, 7, 7))
        self.write_features({"COCO_train2014_000000000007": self.image(1), "000000000009": self.image(2), "7": self.image(3)})
        stdout = self.prepared(*self.visual("vqa", "--folder", self.folder))
        self.assertIn("2 images", stdout)
        self.assertEqual(self.attribute("task"), "seq2seq")
        self.assertEqual(self.words("train")[0], "vqa: a b [UNK] </s>")
        self.assertEqual(self.words("train", "target_ids", "target_offsets"), ["blue </s>", "green </s>", "blue </s>"])
        self.assertEqual(self.ids("train"), ["100", "101", "102"])
        # Each image once, and rows that say which is theirs.
        self.assertEqual(self.array("train", "image_index").tolist(), [[0], [0], [1]])
        self.assertEqual(self.array("train", "vis_feats")[:, 0, 0].tolist(), [1, 2])
        self.assertEqual(self.array("train", "vis_feats").dtype, np.float32)
        self.assertNotIn("vis_boxes", self.arrays("train"))
        self.assertNotIn("reference_bytes", self.arrays("train"))
        self.assertEqual(self.array("validation", "vis_feats")[:, 0, 0].tolist(), [2, 3])
        self.assertEqual(self.references("validation")[1], ["green"] * 10)
        # 4 of 10 gave red: right. One row of three is green: right. Half gave red: right.
        self.assertEqual(self.score(["red", "green", "a red"]), {"vqa_accuracy": 1.0})
        self.assertEqual(self.score(["green", "green", ""]), {"vqa_accuracy": 1 / 3})

    def test_answers_with_scores_are_scored_with_them(self) -> None:
        row = {"img_id": "x", "sent": "a", "question_id": 5, "label": {"blue": 0.3, "red": 1}}
        train = self.write_json("train.json", [row])
        self.write_features({"x": self.image(1)})
        for dataset in ("vqa", "gqa"):
            self.prepared(*self.visual(dataset, "--train", train, "--validation", train))
            self.assertEqual(self.words("train"), [f"{dataset}: a </s>"])
            self.assertEqual(self.words("train", "target_ids", "target_offsets"), ["red </s>"])
            self.assertAlmostEqual(self.score(["blue"])["vqa_accuracy"], 0.3, places=6)
            self.assertEqual(self.score(["green"])["vqa_accuracy"], 0)

    def test_gqa_as_published_is_an_object_by_question(self) -> None:
        train = self.write_json("train.json", {"q1": {"imageId": "x", "question": "a", "answer": "red"}})
        self.write_features({"x": self.image(1)})
        self.prepared(*self.visual("gqa", "--train", train))
        self.assertEqual((self.ids("train"), self.words("train")), (["q1"], ["gqa: a </s>"]))

    def test_boxes_are_parts_of_the_image_in_the_order_of_the_formula(self) -> None:
        row = {"img_id": "x", "sent": "a", "question_id": 5, "label": {"red": 1}}
        train = self.write_json("train.json", [row])
        self.write_features({"x": self.image(1)}, [[0, 10, 100, 60], [50, 0, 200, 100]])
        self.prepared(*self.visual("vqa", "--train", train))
        np.testing.assert_allclose(self.array("train", "vis_boxes"), [[[0, 0.5, 0.1, 0.6], [0.25, 1, 0, 1]]])
        self.prepared(*self.visual("vqa", "--train", train, "--box-order", "x1y1x2y2"))
        np.testing.assert_allclose(self.array("train", "vis_boxes"), [[[0, 0.1, 0.5, 0.6], [0.25, 0, 1, 1]]])

    def test_captions_are_rows_to_train_on_and_references_to_score_with(self) -> None:
        value = {
            "images": [{"id": 1, "file_name": "COCO_train2014_000000000001.jpg"}, {"id": 2, "file_name": "2.jpg"}],
            "annotations": [{"image_id": 2, "caption": "a b"}, {"image_id": 1, "caption": "c d "}, {"image_id": 2, "caption": "e f"}],
        }
        captions = self.write_json("captions.json", value)
        self.write_features({"COCO_train2014_000000000001": self.image(1), "2": self.image(2)})
        self.prepared(*self.visual("coco", "--train", captions, "--validation", captions))
        self.assertEqual(self.words("train"), ["caption: </s>"] * 3)
        self.assertEqual(self.words("train", "target_ids", "target_offsets"), ["c d </s>", "a b </s>", "e f </s>"])
        self.assertEqual(self.array("train", "image_index").tolist(), [[0], [1], [1]])
        self.assertEqual(self.ids("validation"), ["1", "2"])
        self.assertEqual(self.references("validation"), [["c d"], ["a b", "e f"]])
        metrics = self.score(["c d", "e f"])
        self.assertEqual(metrics["exact_match"], 1)
        self.assertIn("cider", metrics)

    def test_the_split_of_karpathy_divides_one_file(self) -> None:
        images = [
            {"cocoid": number, "filename": f"{number}.jpg", "split": split, "sentences": [{"raw": "a"}, {"raw": "b"}]}
            for number, split in enumerate(("train", "val", "restval", "test"))
        ]
        path = self.write_json("dataset_coco.json", {"images": images})
        self.write_features({str(number): self.image(number) for number in range(4)})
        self.prepared(*self.visual("coco", "--input", path, "--split-column", "split"))
        self.assertEqual(self.ids("train"), ["0", "0", "2", "2"])
        self.assertEqual((self.ids("validation"), self.ids("test")), (["1"], ["3"]))

    def test_statements_have_two_images_and_are_classes(self) -> None:
        lines = [{"identifier": f"dev-8-{n}-0", "sentence": "a", "label": label} for n, label in ((0, "True"), (1, "False"))]
        train = self.write("train.json", "\n".join(map(json.dumps, lines)))
        listed = self.write_json("valid.json", [{"identifier": "v", "sent": "b", "img0": "dev-8-1-img1", "img1": "dev-8-0-img0", "label": 1}])
        self.write_features({f"dev-8-{n}-img{i}": self.image(2 * n + i) for n in (0, 1) for i in (0, 1)})
        self.prepared(*self.visual("nlvr2", "--train", train, "--validation", listed))
        self.assertEqual(self.words("train"), ["nlvr: a </s>"] * 2)
        self.assertEqual(self.words("train", "target_ids", "target_offsets"), ["true </s>", "false </s>"])
        self.assertEqual(self.array("train", "image_index").tolist(), [[0, 1], [2, 3]])
        self.assertEqual(self.array("validation", "vis_feats")[:, 0, 0].tolist(), [3, 0])
        self.assertEqual(json.loads(self.attribute("label_names")), ["false", "true"])
        self.assertEqual(self.score(["true"])["accuracy"], 1)

    def test_what_is_malformed_is_named_and_counted(self) -> None:
        good = {"img_id": "x", "sent": "a", "question_id": 1, "label": {"red": 1}}
        bad = {
            "none": "expected features of the image none",
            "wide": "[2, 3] as of the first image, found [2, 4]",
            "nan": "found NaN or infinity",
            "flat": "expected features [tokens, width]",
        }
        rows = [good, *({**good, "img_id": name} for name in bad), {**good, "label": {}}, {**good, "sent": " "}, 3]
        train = self.write_json("train.json", rows)
        nan = self.image(1)
        nan[1, 2] = np.nan
        self.write_features({"x": self.image(1), "wide": self.image(1, 4), "nan": nan, "flat": np.zeros(3, np.float32)})
        # Rows are read first, then images are looked for.
        stderr = self.refused(*self.visual("vqa", "--train", train))
        self.expect(stderr, f"{train}:6: expected answers with scores", f"{train}:7:", f"{train}:8: expected an object", "3 malformed rows")
        stdout = self.prepared(*self.visual("vqa", "--train", train, "--drop-malformed"))
        self.assertIn("train.json: left out 7 malformed rows", stdout)
        self.assertEqual(len(self.ids("train")), 1)
        self.output.unlink()
        self.write_json("train.json", rows[:5])
        stderr = self.refused(*self.visual("vqa", "--train", train))
        self.expect(stderr, f"{self.features}: wide", "4 malformed rows", *bad.values(), *(f"{train}:{line}: " for line in (2, 3, 4, 5)))

    def test_boxes_that_cannot_be_are_refused(self) -> None:
        train = self.write_json("train.json", [{"img_id": "x", "sent": "a", "question_id": 1, "label": {"red": 1}}])
        inside = [[0, 0, 1, 1]] * 2
        for boxes, size, piece in (
            ([[0, 0, 300, 60]] * 2, (200, 100), "inside the image"),
            ([[0, 0, 100, 60]] * 2, None, "inside the image"),
            (inside[:1], (200, 100), "[2, 4] wanted, [1, 4] found"),
            (inside, (0, 100), "above 0 wanted"),
        ):
            self.write_features({"x": self.image(1)}, boxes, size)
            self.expect(self.refused(*self.visual("vqa", "--train", train)), f"{self.features}: x", piece)

    def test_the_image_that_lacks_boxes_is_named(self) -> None:
        good = {"sent": "a", "label": {"red": 1}}
        self.write_features({"bare": self.image(1)})
        with h5py.File(self.features, "a") as file:
            file["boxed/features"], file["boxed/boxes"] = self.image(2), np.full((2, 4), 0.5)
        for names in (("boxed", "bare"), ("bare", "boxed")):
            rows = [{**good, "img_id": name, "question_id": number} for number, name in enumerate(names)]
            stderr = self.refused(*self.visual("vqa", "--train", self.write_json("train.json", rows)))
            self.expect(stderr, f"train.json:2: {self.features}: {names[1]}: expected boxes", "found some of boxed and none of bare")

    def test_questions_without_annotation_and_broken_files_are_refused(self) -> None:
        questions = self.vqa_files()
        self.write_features({"7": self.image(1), "9": self.image(1)})
        annotations = self.folder / "v2_mscoco_train2014_annotations.json"
        annotations.write_text('{"annotations": [{"question_id": 100, "answers": [{"answer": "red"}]}, {"question_id": 101, "answers": []}]}')
        stderr = self.refused(*self.visual("vqa", "--train", questions))
        self.expect(stderr, f"{questions}:2: expected a list of answers", f"{questions}:3: expected an annotation of question 102")
        annotations.write_text("{")
        self.expect(self.refused(*self.visual("vqa", "--train", questions)), str(annotations), "expected JSON")
        annotations.unlink()
        self.expect(self.refused(*self.visual("vqa", "--train", questions)), str(annotations), "no such file")
        self.features.write_bytes(b"no HDF5")
        self.expect(self.refused(*self.visual("vqa", "--train", self.vqa_files())), str(self.features), "HDF5")
        captions = self.write_json("c.json", {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 2, "caption": "a"}]})
        self.write_features({"1": self.image(1)})
        self.expect(self.refused(*self.visual("coco", "--train", captions)), "image_id of an image", "expected captions of image 1")

    def test_features_belong_to_datasets_about_images(self) -> None:
        train = self.write("train.tsv", "text\tlabel\na\tx\nb\ty\n")
        self.write_features({"x": self.image(1)})
        self.expect(self.refused("--train", train, "--text", "text", "--label", "label", "--features", self.features), "--features")
        self.expect(self.refused("--dataset", "vqa", "--train", train), "--features: expected with --dataset")


if __name__ == "__main__":
    unittest.main()
