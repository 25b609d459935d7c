# SPDX-License-Identifier: Apache-2.0
"""tools/espalier_hf, an implementation of its own, computes with transformers what the program computes with the same adapter."""

import json
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch
import transformers
from tiny_runs import GOLDEN, Program, make_inputs

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "espalier_hf"))
import espalier_hf  # noqa: E402

ESPALIER, _ = sys.argv.pop(1), sys.argv.pop(1)  # one rank needs no launcher
TOLERANCE = 1e-5
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CLASSES = {"classification": transformers.AutoModelForSequenceClassification, "seq2seq": transformers.AutoModelForSeq2SeqLM,
           "causal_lm": transformers.AutoModelForCausalLM, "image_classification": transformers.AutoModelForImageClassification}
TASKS = {"bert_1": "classification", "roberta_1": "classification", "vit_1": "image_classification", "t5_1": "seq2seq", "t5_2": "seq2seq",
         "bart_1": "seq2seq", "gpt2_1": "causal_lm", "opt_1": "causal_lm", "opt_2": "causal_lm", "llama_1": "causal_lm", "llama_2": "causal_lm",
         "llama_4": "classification"}
SMALL = {"lst": ("--peft.lst.reduction=2",), "lora": ("--peft.lora.rank=3",), "rosa": ("--peft.rosa.rank=3",),
         "last": ("--peft.last.rank=4", "--peft.last.heads=2"), "adapter": ("--peft.adapter.rank=4",), "meft": ("--peft.meft.rank=4",),
         "prompt": ("--peft.prompt.tokens=3",)}


class EspalierHf(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.program = Program(ESPALIER, Path(scratch.name))
        cls.number = 0

    def check(self, name: str, method: str, *words: str, task: str = "", implementation: str = "sdpa") -> None:
        model, task = GOLDEN / name, task or TASKS[name]
        with self.subTest(model=name, task=task, method=method, words=words, implementation=implementation):
            type(self).number += 1
            run = self.program.train(f"run{self.number}", model, task, f"--peft.method={method}", *SMALL.get(method, ()), *words)
            inputs = make_inputs(model, task)
            adapter = run / "adapter"
            expected = self.program.predict(model, inputs, f"--adapter={adapter}")
            options = {"num_labels": 3, "ignore_mismatched_sizes": True} if "classification" in task else {}
            torch.manual_seed(0)
            bare = CLASSES[task].from_pretrained(model, attn_implementation=implementation, **options).eval()
            if getattr(bare.config, "pad_token_id", 0) is None:
                bare.config.pad_token_id = 0  # as the program takes it
            arrays = {key: torch.from_numpy(array) for key, array in inputs.items()}
            with torch.no_grad():
                before = bare(**arrays).logits.numpy()
                attached = espalier_hf.attach(bare, adapter)
                found = attached(**arrays).logits.numpy()
                again = attached(**arrays).logits.numpy()
            if found.ndim == 3 and "decoder_input_ids" not in inputs:
                attended = inputs["attention_mask"].astype(bool)
                before, found, again, expected = (each[attended] for each in (before, found, again, expected))
            scale = float(np.abs(expected).max())
            self.assertLess(float(np.abs(found - expected).max()) / scale, TOLERANCE)
            self.assertTrue(np.array_equal(found, again))
            self.assertGreater(float(np.abs(found - before).max()) / scale, 1e-3)

    def test_attaches_lst(self) -> None:
        for name in ("bert_1", "vit_1", "gpt2_1", "opt_1", "opt_2", "llama_1", "llama_4", "bart_1", "t5_1", "t5_2"):
            self.check(name, "lst")
        for name in ("gpt2_1", "t5_1"):
            self.check(name, "lst", task="classification")
        self.check("roberta_1", "lst", "--peft.lst.layers=0,2", "--peft.lst.merge_last=true", implementation="eager")
        self.check("bert_1", "lst", "--peft.lst.fuse=after", "--peft.lst.gate=none", "--peft.lst.ladder_bias=false")
        self.check("gpt2_1", "lst", "--peft.lst.gate=one", "--peft.lst.merge_last=true")
        self.check("opt_2", "lst", "--peft.lst.merge_last=true", implementation="eager")
        self.check("llama_2", "lst", "--peft.lst.layers=1", "--peft.lst.fuse=after", implementation="eager")
        self.check("bart_1", "lst", "--peft.lst.layers=1", "--peft.lst.decoder_layers=1", "--peft.lst.fuse=after", implementation="eager")
        self.check("t5_1", "lst", "--peft.lst.position_bias=backbone", "--peft.lst.layers=1,2", "--peft.lst.gate_temperature=0.7")
        self.check("t5_1", "lst", "--peft.lst.layers=1", "--peft.lst.decoder_layers=1", "--peft.lst.side_initial=random", implementation="eager")

    def test_attaches_last(self) -> None:
        for name in ("roberta_1", "gpt2_1", "opt_1", "opt_2", "llama_1"):
            self.check(name, "last")
        self.check("bert_1", "last", "--peft.last.group_size=3", "--peft.last.up_bias=true", "--peft.last.qkv_bias=true", implementation="eager")
        self.check("vit_1", "last", "--peft.last.correction=false", "--peft.last.norm_affine=false", "--peft.last.up_deviation=0.1")

    def test_attaches_meft_around_whole_blocks(self) -> None:
        for name in ("gpt2_1", "llama_1", "t5_1", "bart_1"):
            self.check(name, "meft")
        for name in ("opt_1", "vit_1", "t5_2"):
            self.check(name, "meft", "--peft.meft.variant=2")
        self.check("roberta_1", "meft", "--peft.meft.merge=concat", "--peft.meft.norm_in_adapter=true")
        self.check("bert_1", "meft", "--peft.meft.variant=2", "--peft.meft.merge=sum", "--peft.meft.frozen_bottom=1", "--peft.meft.cached_top=1",
                   implementation="eager")
        self.check("bert_1", "meft", "--peft.meft.inversion=float", "--peft.meft.lambda=0.5", "--peft.meft.error_limit=1")

    def test_attaches_meft_around_halves_of_blocks(self) -> None:
        for name in ("bert_1", "vit_1", "gpt2_1", "opt_1", "opt_2", "llama_2"):
            self.check(name, "meft", "--peft.meft.variant=3")
        self.check("roberta_1", "meft", "--peft.meft.variant=3", "--peft.meft.frozen_bottom=1", implementation="eager")
        self.check("llama_1", "meft", "--peft.meft.variant=3", "--peft.meft.merge=concat", implementation="eager")

    def test_attaches_lora_and_rosa_inside_meft(self) -> None:
        self.check("bert_1", "meft", "--peft.meft.factors=lora", "--peft.lora.rank=3")
        self.check("bert_1", "meft", "--peft.meft.factors=rosa", "--peft.rosa.rank=3", "--peft.rosa.every_steps=2")

    def test_attaches_prompts(self) -> None:
        for name in ("bert_1", "roberta_1", "gpt2_1", "opt_1", "llama_1", "t5_1", "bart_1"):
            self.check(name, "prompt")

    def test_attaches_adapters(self) -> None:
        for name in ("bert_1", "roberta_1", "vit_1", "gpt2_1", "opt_1", "t5_1", "bart_1", "llama_1"):
            self.check(name, "adapter", "--peft.adapter.norms_trained=true")
            self.check(name, "adapter", "--peft.adapter.placement=parallel", "--peft.adapter.activation=relu", "--peft.adapter.scale=4")
        for name in ("t5_1", "bart_1"):
            self.check(name, "adapter", "--peft.adapter.cross_attention=true")

    def test_attaches_bitfit_and_lora(self) -> None:
        for name in ("bert_1", "gpt2_1", "vit_1"):
            self.check(name, "bitfit")
        for name in ("bert_1", "gpt2_1", "t5_1", "llama_1"):
            self.check(name, "lora")
        self.check("gpt2_1", "lora", task="classification")

    def test_attaches_lora_with_biases_and_rosa(self) -> None:
        self.check("gpt2_1", "lora", "--peft.lora.biases=all", "--peft.lora.rank_stabilized=true", "--peft.lora.targets=attention.key,decoder.0.feed_forward.up")
        for name in ("roberta_1", "gpt2_1"):
            self.check(name, "rosa", "--peft.rosa.every_steps=2")
            self.check(name, "rosa", "--peft.rosa.biases=all")
        self.check("gpt2_1", "rosa", "--peft.rosa.targets=attention.query_key_value,attention.output", "--peft.rosa.biases=targets")

    def test_attaches_every_weight(self) -> None:
        for name in ("roberta_1", "vit_1", "gpt2_1", "opt_2", "llama_1", "bart_1", "t5_1", "t5_2"):
            self.check(name, "full")

    def test_pools_by_mean(self) -> None:
        for name, method in (("bert_1", "lst"), ("bert_1", "prompt"), ("roberta_1", "last"), ("vit_1", "last"), ("vit_1", "lst"), ("llama_4", "lora")):
            self.check(name, method, "--model.pooling=mean")
        for name, method in (("gpt2_1", "prompt"), ("opt_1", "last"), ("t5_1", "lst"), ("bart_1", "adapter")):
            self.check(name, method, "--model.pooling=mean", task="classification")

    def test_generates_what_the_logits_of_the_whole_text_say(self) -> None:
        cases = [("gpt2_1", method) for method in ("last", "lst", "meft", "prompt")] + [("llama_1", "prompt")]
        for name, method in cases:
            run = self.program.train(f"generates_{name}_{method}", GOLDEN / name, "causal_lm", f"--peft.method={method}", *SMALL[method])
            model = espalier_hf.attach(CLASSES["causal_lm"].from_pretrained(GOLDEN / name), run / "adapter")
            text = torch.from_numpy(make_inputs(GOLDEN / name, "causal_lm")["input_ids"][:1])
            with self.subTest(model=name, method=method), torch.no_grad():
                found = model.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
                for _ in range(8):
                    text = torch.cat([text, model(input_ids=text).logits[:, -1:].argmax(-1)], 1)
                self.assertEqual(found.tolist(), text.tolist())
                self.assertFalse(model.generation_config.use_cache)

    def test_refuses_what_does_not_fit_by_name(self) -> None:
        run = self.program.train("refused", GOLDEN / "bert_1", "classification", "--peft.method=lst", *SMALL["lst"], steps=1)
        other = CLASSES["image_classification"].from_pretrained(GOLDEN / "vit_1")
        with self.assertRaisesRegex(espalier_hf.AdapterError, "expected"):
            espalier_hf.attach(other, run / "adapter")
        wide = CLASSES["classification"].from_pretrained(GOLDEN / "bert_1", num_labels=7, ignore_mismatched_sizes=True)
        with self.assertRaisesRegex(espalier_hf.AdapterError, "as many labels"):
            espalier_hf.attach(wide, run / "adapter")
        bare = transformers.AutoModel.from_pretrained(GOLDEN / "bert_1")
        with self.assertRaisesRegex(espalier_hf.AdapterError, "found none"):
            espalier_hf.attach(bare, run / "adapter")
        with self.assertRaisesRegex(espalier_hf.AdapterError, "expected an adapter folder"):
            espalier_hf.read_adapter(run / "absent")

    def test_refuses_folders_that_are_no_adapter_by_name(self) -> None:
        run = self.program.train("damaged", GOLDEN / "bert_1", "classification", "--peft.method=probe", steps=1)
        file = run / "adapter" / "adapter.json"
        text = file.read_text()
        description = json.loads(text)
        cases = {"version 1": json.dumps(description | {"format_version": 2}), "expected JSON": text[:-9], "expected format": "[]",
                 "expected the key 'tensors'": json.dumps({key: value for key, value in description.items() if key != "tensors"}),
                 "found none": json.dumps(description | {"tensors": description["tensors"] | {"file": "absent"}}),
                 "expected 1 bytes": json.dumps(description | {"tensors": description["tensors"] | {"bytes": 1}})}
        for complaint, damaged in cases.items():
            file.write_text(damaged)
            with self.subTest(complaint=complaint), self.assertRaisesRegex(espalier_hf.AdapterError, complaint):
                espalier_hf.read_adapter(run / "adapter")


if __name__ == "__main__":
    unittest.main()
