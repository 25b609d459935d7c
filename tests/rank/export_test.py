# SPDX-License-Identifier: Apache-2.0
"""What `espalier export` writes for other programs: PEFT loads its LoRA, transformers its merged models, with the logits of the
program; and what PEFT writes is an adapter and a start of training here. A run is exported wherever its backbone and dataset lie."""

import json
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_runs import GOLDEN, Program, make_inputs, run

ESPALIER, _ = sys.argv.pop(1), sys.argv.pop(1)  # one rank needs no launcher
TOLERANCE = 1e-5
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CLASSES = {"classification": transformers.AutoModelForSequenceClassification, "seq2seq": transformers.AutoModelForSeq2SeqLM,
           "causal_lm": transformers.AutoModelForCausalLM, "image_classification": transformers.AutoModelForImageClassification}
LORA = ("--peft.method=lora", "--peft.lora.rank=3", "--peft.lora.alpha=6")


def logits_of(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()


def load_base(folder: Path, task: str, num_labels: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    words = {"num_labels": num_labels, "ignore_mismatched_sizes": True} if "classification" in task else {}
    model = CLASSES[task].from_pretrained(folder, dtype=torch.float32, **words)
    if getattr(model.config, "pad_token_id", 0) is None:
        model.config.pad_token_id = 0  # as the program takes it
    return model


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.folder = Path(scratch.name)
        cls.program = Program(ESPALIER, cls.folder)

    def assert_close(self, found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
        self.assertEqual(found.shape, expected.shape)
        self.assertLess(float(np.abs(found - expected).max() / np.abs(expected).max()), tolerance)

    def assert_attended_close(self, found: np.ndarray, expected: np.ndarray, inputs: dict[str, np.ndarray]) -> None:
        if found.ndim == 3 and "decoder_input_ids" not in inputs:
            attended = inputs["attention_mask"].astype(bool)
            found, expected = found[attended], expected[attended]
        self.assert_close(found, expected)


class Peft(Case):
    RUNS = (
        ("bert_1", "classification", ("--peft.lora.targets=attention.query,feed_forward.down,encoder.1.attention.output",)),
        ("bert_4", "classification", ("--peft.lora.biases=all",)),
        ("roberta_1", "classification", ("--peft.lora.rank_stabilized=true", "--peft.lora.biases=targets")),
        ("gpt2_1", "causal_lm", ("--peft.lora.targets=attention.query,attention.value,feed_forward.up",)),
        ("gpt2_1", "classification", ("--peft.lora.targets=attention.key,decoder.1.attention.value", "--peft.lora.biases=targets",
                                      "--peft.lora.rank_stabilized=true")),
        ("t5_1", "seq2seq", ("--peft.lora.targets=attention.query,cross_attention.value,feed_forward.up",)),
        ("t5_1", "classification", ()),
        ("bart_1", "classification", ()),
        ("opt_1", "causal_lm", ()),
        ("llama_1", "causal_lm", ("--peft.lora.targets=attention.query,feed_forward.gate",)),
        ("vit_1", "image_classification", ("--peft.lora.targets=attention.query,attention.output,feed_forward.down",)),
    )

    def test_loads_an_exported_lora_as_it_is_and_the_program_reads_it_back(self) -> None:
        for number, (name, task, words) in enumerate(self.RUNS):
            with self.subTest(model=name, task=task, words=words):
                model = GOLDEN / name
                folder = self.program.train(f"run{number}", model, task, *LORA, *words)
                inputs = make_inputs(model, task)
                expected = self.program.predict(model, inputs, f"--run={folder}")
                exported = self.program.export(folder, "--format=peft")
                adapted = peft.PeftModel.from_pretrained(load_base(model, task), exported)
                self.assert_attended_close(logits_of(adapted, inputs), expected, inputs)
                self.assert_attended_close(self.program.predict(model, inputs, f"--adapter={exported}"), expected, inputs)

    def make_peft_folder(self, name: str, base: str, task: str, **words: object) -> tuple[Path, np.ndarray, dict[str, np.ndarray]]:
        """A LoRA as PEFT has it after training: every factor, bias and saved module is something of its own."""
        model = peft.get_peft_model(load_base(GOLDEN / base, task), peft.LoraConfig(**words))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.requires_grad or "lora_" in key:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(self.folder / name)
        inputs = make_inputs(GOLDEN / base, task)
        return self.folder / name, logits_of(model, inputs), inputs

    FOLDERS = (
        ("bert_1", "classification", dict(r=4, task_type="SEQ_CLS", target_modules=["query", "value"], use_rslora=True)),
        ("bert_1", "classification", dict(r=4, target_modules=r".*layer\.[02]\..*(query|dense)", exclude_modules=r".*output\.dense",
                                          modules_to_save=["classifier"])),
        ("roberta_1", "classification", dict(r=4, task_type="SEQ_CLS", target_modules=["key"], layers_to_transform=[0, 2],
                                             layers_pattern="layer", bias="all")),
        ("roberta_1", "classification", dict(r=4, task_type="SEQ_CLS", target_modules=["key", "value"], bias="lora_only",
                                             rank_pattern={"value": 2}, alpha_pattern={"layer.1.attention.self.key": 24})),
        ("gpt2_1", "causal_lm", dict(r=4, task_type="CAUSAL_LM", bias="all")),
        ("gpt2_1", "classification", dict(r=4, task_type="SEQ_CLS", target_modules=["c_attn", "c_fc"])),
        ("t5_1", "seq2seq", dict(r=4, task_type="SEQ_2_SEQ_LM", target_modules="all-linear")),
        ("vit_1", "image_classification", dict(r=4, target_modules=["q_proj", "fc1"], modules_to_save=["classifier"])),
    )

    def test_writes_what_the_program_takes_as_an_adapter(self) -> None:
        for number, (base, task, words) in enumerate(self.FOLDERS):
            with self.subTest(base=base, words=words):
                folder, expected, inputs = self.make_peft_folder(f"peft{number}", base, task, **words)
                bare = logits_of(load_base(GOLDEN / base, task), inputs)
                self.assertGreater(float(np.abs(bare - expected).max()), 1e-2)
                self.assert_attended_close(self.program.predict(GOLDEN / base, inputs, f"--adapter={folder}"), expected, inputs)

    def test_writes_what_training_starts_from(self) -> None:
        folder, expected, inputs = self.make_peft_folder("start", "bert_1", "classification", r=4, task_type="SEQ_CLS",
                                                         target_modules=["query"], bias="lora_only")
        still = self.program.train("still", GOLDEN / "bert_1", "classification", f"--train.initial_adapter={folder}",
                                   steps=1, rate=1e-12)
        self.assert_close(self.program.predict(GOLDEN / "bert_1", inputs, f"--run={still}"), expected)
        again = self.program.train("again", GOLDEN / "bert_1", "classification", f"--train.initial_adapter={still / 'adapter'}",
                                   steps=1, rate=1e-12)
        self.assert_close(self.program.predict(GOLDEN / "bert_1", inputs, f"--run={again}"), expected)
        moved = self.program.train("moved", GOLDEN / "bert_1", "classification", f"--train.initial_adapter={folder}")
        found = self.program.predict(GOLDEN / "bert_1", inputs, f"--run={moved}")
        self.assertGreater(float(np.abs(found - expected).max()), 1e-2)

    def test_is_refused_by_name_where_it_cannot_be_read(self) -> None:
        folder, _, _ = self.make_peft_folder("refused", "bert_1", "classification", r=4, task_type="SEQ_CLS", target_modules=["query"])
        description = folder / "adapter_config.json"
        good = json.loads(description.read_text())
        for key, value in (("use_dora", True), ("init_lora_weights", "pissa"), ("peft_type", "LOHA"), ("lora_bias", True),
                           ("layer_replication", [[0, 2]]), ("trainable_token_indices", [1]), ("something_new", 7)):
            description.write_text(json.dumps(good | {key: value}))
            text = self.refusal(folder)
            self.assertIn(key, text)
        description.write_text(json.dumps(good))
        for kept, renamed in ((".lora_", ".lora_embedding_"), ("encoder.layer.0.attention.self.query.", "pooler.dense."),
                              (".classifier.bias", ".novel.bias")):
            tensors = load_file(folder / "adapter_model.safetensors")
            text = self.refusal_of(folder, {name.replace(kept, renamed): tensor for name, tensor in tensors.items()})
            self.assertIn(renamed, text)

    def test_is_refused_for_a_task_that_no_head_is_for(self) -> None:
        folder, _, _ = self.make_peft_folder("tasks", "bert_1", "classification", r=4, task_type="SEQ_CLS", target_modules=["query"])
        description = folder / "adapter_config.json"
        good = json.loads(description.read_text())
        for task in ("TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"):
            with self.subTest(task=task):
                description.write_text(json.dumps(good | {"task_type": task}))
                text = self.refusal(folder)
                self.assertIn("task_type", text)
                self.assertIn(task, text)

    def test_is_refused_by_tensor_where_factors_do_not_fit_together_or_the_linear(self) -> None:
        folder, _, _ = self.make_peft_folder("shapes", "bert_1", "classification", r=4, task_type="SEQ_CLS", target_modules=["query"])
        good = load_file(folder / "adapter_model.safetensors")
        a, b = (f"base_model.model.bert.encoder.layer.1.attention.self.query.lora_{factor}.weight" for factor in "AB")
        (rank, inputs), (outputs, _) = good[a].shape, good[b].shape
        bad = {"B alone": (b, {a: None}), "A alone": (a, {b: None}), "ranks": (b, {a: torch.ones(rank - 1, inputs)}),
               "no rank": (a, {a: torch.ones(0, inputs), b: torch.ones(outputs, 0)}), "inputs": (a, {a: torch.ones(rank, inputs + 1)}),
               "outputs": (b, {b: torch.ones(outputs + 1, rank)}), "flat A": (a, {a: torch.ones(inputs)}),
               "deep B": (b, {b: torch.ones(outputs, rank, 1)})}
        for name, (key, changed) in bad.items():
            with self.subTest(name):
                tensors = {each: tensor for each, tensor in (good | changed).items() if tensor is not None}
                self.assertIn(f"tensor {key}: expected", self.refusal_of(folder, tensors))

    def test_is_refused_where_the_largest_rank_does_not_fit_another_target(self) -> None:
        folder, _, _ = self.make_peft_folder("narrow", "llama_1", "causal_lm", r=4, task_type="CAUSAL_LM",
                                             target_modules=["q_proj", "k_proj"], rank_pattern={"q_proj": 12})
        text = self.refusal(folder, "llama_1")
        for said in ("self_attn.k_proj.lora_A.weight", "at most 8, the smaller width of decoder.0.attention.key", "found 12"):
            self.assertIn(said, text)

    def test_is_described_by_inspect(self) -> None:
        folder, _, _ = self.make_peft_folder("described", "bert_1", "classification", r=4, lora_alpha=6, task_type="SEQ_CLS",
                                             target_modules=["query", "value"], rank_pattern={"value": 2})
        tensors = load_file(folder / "adapter_model.safetensors")
        rows = {line[2:24].strip(): line[24:].strip() for line in run([ESPALIER, "inspect", str(folder)]).splitlines()[1:]}
        self.assertEqual({key: rows[key] for key in ("method", "rank", "alpha", "rank pattern", "tensors", "bytes", "type")},
                         {"method": "LORA", "rank": "4", "alpha": "6", "rank pattern": '{"value":2}', "tensors": str(len(tensors)),
                          "bytes": str(sum(tensor.nbytes for tensor in tensors.values())), "type": "float32"})
        self.assertEqual(sorted(json.loads(rows["targets"])), ["query", "value"])

    def refusal(self, folder: Path, base: str = "bert_1") -> str:
        return run([ESPALIER, "predict", f"--model.path={GOLDEN / base}", f"--adapter={folder}", f"--inputs={self.folder / 'in.h5'}",
                    f"--output={self.folder / 'none.h5'}"], expected_code=2)

    def refusal_of(self, folder: Path, tensors: dict[str, torch.Tensor]) -> str:
        """Of the folder with these tensors in place of its own."""
        broken = self.folder / "broken"
        shutil.copytree(folder, broken, dirs_exist_ok=True)
        save_file(tensors, broken / "adapter_model.safetensors")
        return self.refusal(broken)

    def test_gets_no_method_but_lora(self) -> None:
        folder = self.program.train("bitfit", GOLDEN / "bert_1", "classification", "--peft.method=bitfit", steps=1)
        self.assertIn("bitfit", self.program.export(folder, "--format=peft", expected_code=2))


class Merged(Case):
    RUNS = (
        ("bert_1", "classification", LORA),
        ("bert_4", "classification", ("--peft.method=rosa", "--peft.rosa.rank=3", "--peft.rosa.every_steps=2")),
        ("bert_2", "classification", ("--peft.method=bitfit",)),
        ("roberta_1", "classification", ("--peft.method=rosa", "--peft.rosa.rank=3", "--peft.rosa.targets=attention.value,feed_forward.up")),
        ("gpt2_1", "causal_lm", ("--peft.method=rosa", "--peft.rosa.rank=3", "--peft.rosa.targets=attention.key,feed_forward.down")),
        ("gpt2_2", "causal_lm", LORA),
        ("gpt2_1", "classification", LORA),
        ("t5_1", "seq2seq", LORA),
        ("t5_1", "classification", LORA),
        ("bart_1", "seq2seq", ("--peft.method=full",)),
        ("vit_1", "image_classification", LORA),
    )

    def test_is_a_plain_model_of_transformers_with_the_same_logits(self) -> None:
        for number, (name, task, words) in enumerate(self.RUNS):
            with self.subTest(model=name, task=task, words=words):
                model = GOLDEN / name
                folder = self.program.train(f"run{number}", model, task, *words)
                inputs = make_inputs(model, task)
                expected = self.program.predict(model, inputs, f"--run={folder}")
                # One folder is stored in bf16, and so are its merged weights, unless asked otherwise.
                merged = self.program.export(folder, "--format=merged", *(("--type=fp32",) if name == "bert_4" else ()))
                plain, report = CLASSES[task].from_pretrained(merged, dtype=torch.float32, output_loading_info=True)
                self.assertFalse(report["missing_keys"])
                self.assert_attended_close(logits_of(plain, inputs), expected, inputs)
                if "classification" in task:
                    self.assertEqual(plain.config.id2label, {0: "bad", 1: "fair", 2: "good"})
                    self.assertEqual(plain.config.architectures, [type(plain).__name__])
                # Without the method, and with the program's own reader.
                self.assert_attended_close(self.program.predict(merged, inputs), expected, inputs)

    def test_leaves_every_other_weight_its_bytes_and_its_type(self) -> None:
        for name in ("bert_1", "gpt2_1"):
            model = self.folder / f"{name}-bf16"
            shutil.copytree(GOLDEN / name, model)
            stored = {key: tensor.to(torch.bfloat16) for key, tensor in load_file(model / "model.safetensors").items()}
            save_file(stored, model / "model.safetensors", {"format": "pt"})
            copied = ("tokenizer.json", "chat_template.json", "chat_template.jinja", "processor_config.json")
            for file in copied:
                (model / file).write_text("{}")
            task = "classification" if name == "bert_1" else "causal_lm"
            folder = self.program.train(f"bytes-{name}", model, task, *LORA, "--peft.lora.targets=attention.value")
            found = tensors_of(merged := self.program.export(folder, "--format=merged"))
            for file in copied:
                self.assertEqual((merged / file).read_text(), "{}")
            changed = {"bert_1": "attention.self.value.weight", "gpt2_1": "attn.c_attn.weight"}[name]
            for key, tensor in stored.items():
                if key.startswith("classifier") or key.startswith("bert.pooler"):
                    self.assertEqual(found[key].dtype, torch.float32)
                    continue
                self.assertEqual(found[key].dtype, torch.bfloat16)
                same = torch.equal(found[key].view(torch.int16), tensor.view(torch.int16))
                self.assertEqual(same, not key.endswith(changed), key)
                if name == "gpt2_1" and key.endswith(changed):
                    width = tensor.shape[0]
                    self.assertTrue(torch.equal(found[key][:, : 2 * width], tensor[:, : 2 * width]))

    def test_comes_in_shards_and_in_another_type(self) -> None:
        model = GOLDEN / "bert_1"
        folder = self.program.train("shards", model, "classification", *LORA)
        whole = tensors_of(self.program.export(folder, "--format=merged"))
        sharded = self.program.export(folder, "--format=merged", "--shard_bytes=9000", "--type=fp16")
        index = json.loads((sharded / "model.safetensors.index.json").read_text())
        self.assertGreater(len(set(index["weight_map"].values())), 3)
        for file in sharded.glob("*.safetensors"):
            tensors = load_file(file)
            self.assertTrue(len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 9000)
        found = tensors_of(sharded)
        self.assertEqual(found.keys(), whole.keys())
        self.assertTrue(all(torch.equal(found[key], tensor.to(found[key].dtype)) for key, tensor in whole.items()))
        plain = CLASSES["classification"].from_pretrained(sharded)
        self.assertEqual(plain.dtype, torch.float16)

    def test_is_refused_for_methods_that_are_no_change_of_weights(self) -> None:
        for method in ("lst", "last", "adapter", "meft", "prompt"):
            with self.subTest(method=method):
                folder = self.program.train(f"no-{method}", GOLDEN / "bert_1", "classification", f"--peft.method={method}",
                                            "--peft.lst.reduction=2", "--peft.adapter.rank=4", "--peft.prompt.tokens=3", steps=1)
                self.assertIn(f"peft.method={method}", self.program.export(folder, "--format=merged", expected_code=2))

    def test_never_writes_over_a_folder(self) -> None:
        folder = self.program.train("over", GOLDEN / "bert_1", "classification", *LORA, steps=1)
        exported = self.program.export(folder, "--format=merged")
        self.assertIn(str(exported), self.program.export(folder, "--format=merged", expected_code=2))


class Moved(Case):
    def test_exports_a_run_whose_backbone_and_dataset_have_moved(self) -> None:
        model = self.folder / "here" / "model"
        shutil.copytree(GOLDEN / "bert_1", model)
        folder = self.program.train("run", model, "classification", *LORA)
        (self.folder / "there").mkdir()
        dataset = (self.folder / "model-classification.h5").rename(self.folder / "there" / "data.h5")
        model = model.rename(self.folder / "there" / "model")
        self.program.export(folder, f"--model.path={model}", expected_code=2)
        self.program.export(folder, f"--data.path={dataset}", expected_code=2)
        exported = self.program.export(folder, f"--model.path={model}", f"--data.path={dataset}")
        self.assertEqual((exported / "adapter.safetensors").read_bytes(), (folder / "adapter" / "adapter.safetensors").read_bytes())
        other = self.program.export(folder, f"--model.path={GOLDEN / 'bert_2'}", f"--data.path={dataset}", expected_code=2)
        self.assertIn("--model.path", other)


if __name__ == "__main__":
    unittest.main()
