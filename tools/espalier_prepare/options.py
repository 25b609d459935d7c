# SPDX-License-Identifier: Apache-2.0
"""The options of tools/prepare.py, and which of them go together."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import features, glue, images, questions, rows, splits, visual
from .errors import InputError
from .forms import COLUMN_FORMS, ColumnForm, Form, Prompt
from .labels import LabelRule
from .tasks import LABEL_TASKS, TASKS

DATASETS = (*glue.TASKS, *COLUMN_FORMS, *questions.FORMS, *images.FORMS, *visual.FORMS)

_DESCRIPTION = """\
Makes one HDF5 dataset (docs/dataset_format.md) out of source files and a tokenizer folder. docs/preparation.md has an
example for every form.

Columns are given by name, or by index counted from 0; --dataset knows the columns of a published dataset. Every
malformed row is named by file and line and refuses the run, unless --drop-malformed leaves it out; rows that an option
drops or truncates are counted in the summary and in the file."""

# Which column options a task needs, and which it may have beside them.
_COLUMNS = {
    "classification": ({"text", "label"}, {"text_pair", "extra_label"}),
    "regression": ({"text", "label"}, {"text_pair", "extra_label"}),
    "multi_label": ({"text", "label"}, {"text_pair"}),
    "seq2seq": ({"text", "target"}, set()),
    "causal_lm": ({"text"}, {"target"}),
}
_IMAGE_OPTIONS = ("image_size", "resize", "short_side", "interpolation", "color", "normalize")
_COLUMN_OPTIONS = ("text", "text_pair", "target", "label", "extra_label")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, help="default: classification, or what --dataset is used for")
    _add_sources(parser)
    _add_columns(parser)
    _add_labels(parser)
    _add_texts(parser)
    _add_splits(parser)
    _add_tokens(parser)
    _add_images(parser)
    parser.add_argument("--output", type=Path, required=True, help="the HDF5 file; replaced only when all is done")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group(
        "source files: --folder, or --train with --validation and --test, or --input, which is divided"
    )
    source.add_argument("--dataset", choices=DATASETS, help="a published dataset, in any of its forms")
    source.add_argument("--folder", type=Path, help="folder of --dataset as distributed")
    source.add_argument(
        "--input", type=Path, nargs="+", help="files that --split-column or --split-hash-prefix divides"
    )
    for name in splits.SPLITS:
        source.add_argument(f"--{name}", type=Path, nargs="+", help=f"files of the {name} split")
    source.add_argument("--format", choices=rows.FORMATS, help="default: by the file's suffix")
    source.add_argument(
        "--no-header", action="store_true", help="the first line of a table is a row; columns are given by index"
    )
    source.add_argument("--drop-malformed", action="store_true", help="leave malformed rows out, named and counted")


def _add_columns(parser: argparse.ArgumentParser) -> None:
    columns = parser.add_argument_group("columns (without --dataset)")
    columns.add_argument("--text", help="column of the text: to classify, to rewrite, or to go on from")
    columns.add_argument("--prompt", help="instead of --text: a text with columns in braces, 'Question: {question}'")
    columns.add_argument("--text-pair", help="column of the second text of a pair")
    columns.add_argument("--target", help="column of the text to write (seq2seq) or of the answer (causal_lm)")
    columns.add_argument("--label", help="column of the label")
    columns.add_argument("--extra-label", action="append", help="column of a further label (may be repeated)")
    columns.add_argument("--id", help="column of the row's id, once per split; default: file name and line")


def _add_labels(parser: argparse.ArgumentParser) -> None:
    label = parser.add_argument_group("labels")
    label.add_argument("--label-names", help="classes in order, separated by commas; default: those found, sorted")
    label.add_argument("--label-separator", default=",", help="of multi_label, where they are one text (default: ,)")
    label.add_argument(
        "--positive-above", type=float, metavar="X", help="the label is a rating: class 1 above X, class 0 otherwise"
    )
    label.add_argument(
        "--drop-within", type=float, default=0.0, metavar="Y", help="drop rows whose rating is nearer than Y to X"
    )


def _add_texts(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument_group("texts")
    text.add_argument(
        "--template",
        choices=glue.TEMPLATES,
        help="of GLUE: texts for an encoder (default), or text to text as T5 has it",
    )
    text.add_argument(
        "--loss", choices=("answer", "all"), default="answer", help="tokens that causal_lm learns (default: answer)"
    )
    text.add_argument(
        "--answer-prefix",
        default=" ",
        help="between prompt and answer of causal_lm, multiple_choice (default: a space)",
    )
    text.add_argument(
        "--blocks", action="store_true", help="causal_lm: all texts one after the other, in blocks of --max-length"
    )


def _add_splits(parser: argparse.ArgumentParser) -> None:
    split = parser.add_argument_group("splits")
    split.add_argument(
        "--split-column", help="column that says train, validation or test, or whose hash decides (default then: --id)"
    )
    split.add_argument(
        "--split-hash-prefix",
        metavar="PREFIX",
        help="split by SHA-256 of PREFIX + the column: the first 8 hex digits "
        "modulo 10 are 8: validation, 9: test, else train",
    )
    split.add_argument(
        "--split-rule",
        choices=(*splits.RULES, "lst"),
        default="published",
        help="what becomes test: the second half of validation; validation itself, for which 1,000 training rows "
        "stand in (hold-out); the matched set of MNLI (mismatched); what the LST paper does with each task (lst)",
    )
    split.add_argument("--split-seed", type=int, default=42, help="of --split-rule (default: 42)")


def _add_tokens(parser: argparse.ArgumentParser) -> None:
    encode = parser.add_argument_group("tokens")
    encode.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json; needed for all but images")
    encode.add_argument(
        "--max-length",
        type=int,
        default=512,
        help="longest input in tokens; the longer text of a pair is cut first, a prompt at its start (default: 512)",
    )
    encode.add_argument("--max-target-length", type=int, default=128, help="longest target of seq2seq (default: 128)")
    encode.add_argument(
        "--too-long", choices=("truncate", "refuse"), default="truncate", help="refuse: such a row is malformed"
    )
    encode.add_argument("--pad-token-id", type=int, help="default: the tokenizer's or the model's")
    encode.add_argument(
        "--eos-token-id", type=int, help="end token of causal_lm; default: the tokenizer's or the model's"
    )
    encode.add_argument(
        "--token-types",
        choices=("auto", "keep", "drop"),
        default="auto",
        help="auto: keep them if any is not 0 and the tokenizer's model_input_names, where given, list them",
    )


def _add_images(parser: argparse.ArgumentParser) -> None:
    image = parser.add_argument_group("images")
    image.add_argument("--image-size", type=int, metavar="PIXELS", help="width and height (default: 224)")
    image.add_argument(
        "--resize", choices=images.RESIZES, help="crop: the centre, after the short side is resized (default: squash)"
    )
    image.add_argument("--short-side", type=int, metavar="PIXELS", help="of --resize crop (default: --image-size)")
    image.add_argument("--interpolation", choices=images.FILTERS, help="default: bilinear")
    image.add_argument("--color", choices=images.COLORS, help="default: rgb")
    image.add_argument(
        "--normalize",
        metavar="HOW",
        help=f"{', '.join(images.NORMALIZATIONS)}, or means:deviations of the channels (default: half, all 0.5)",
    )
    image.add_argument(
        "--features", type=Path, nargs="+", help="HDF5 files with the features of the images that texts are about"
    )
    image.add_argument(
        "--box-order",
        choices=features.BOX_ORDERS,
        default="x1x2y1y2",
        help="corners in vis_boxes: as the formula of CLIP-T5 names them (default), or as VL-T5's own code fed them",
    )


def make_form(options: argparse.Namespace) -> Form:
    """The form of the rows; fixes options.task where it is left open."""
    if options.template is not None and options.dataset not in glue.TASKS:
        raise InputError(f"--template: expected together with --dataset out of {list(glue.TASKS)}")
    if options.dataset is None:
        options.task = options.task or "classification"
        form = _column_form(options)
    else:
        form = _published_form(options)
        options.task = options.task or form.tasks[0]
        if options.task not in form.tasks:
            template = (
                f" and --template {options.template or glue.TEMPLATES[0]}" if options.dataset in glue.TASKS else ""
            )
            raise InputError(
                f"--task: expected one of {list(form.tasks)} for --dataset {options.dataset}{template}, "
                f"found {options.task}"
            )
    _check_reader(options)
    if options.blocks and (options.task != "causal_lm" or options.target or options.dataset or options.max_length < 4):
        raise InputError("--blocks: expected with --task causal_lm, without --target, and --max-length 4 or more")
    if options.max_length < 1 or options.max_target_length < 1:
        raise InputError("--max-length and --max-target-length: expected at least 1")
    return form


def _check_reader(options: argparse.Namespace) -> None:
    """Images have no tokenizer, and texts none of the options on images; texts about images need their features."""
    if (options.dataset in visual.FORMS) != (options.features is not None):
        raise InputError(f"--features: expected with --dataset out of {list(visual.FORMS)}, and only there")
    if options.task == images.TASK and options.tokenizer is not None:
        raise InputError(f"--tokenizer: not used by --task {images.TASK}; leave it out")
    if options.task != images.TASK:
        if options.tokenizer is None:
            raise InputError(f"--tokenizer: expected for --task {options.task}, found none")
        for name in _IMAGE_OPTIONS:
            if getattr(options, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag}: not used by --task {options.task}; leave it out")


def _published_form(options: argparse.Namespace) -> Form:
    given = [
        name for name in (*_COLUMN_OPTIONS, "prompt", "id", "label_names", "positive_above") if getattr(options, name)
    ]
    if given or options.no_header:
        flag = "--" + (given[0] if given else "no_header").replace("_", "-")
        raise InputError(f"{flag}: expected without --dataset, which knows its columns and labels")
    if options.dataset in glue.TASKS:
        return glue.make_form(options.dataset, options.template or "encoder")
    return (COLUMN_FORMS | questions.FORMS | images.FORMS | visual.FORMS)[options.dataset]


def _column_form(options: argparse.Namespace) -> Form:
    if options.task not in _COLUMNS:
        forms = images.FORMS if options.task == images.TASK else questions.FORMS
        raise InputError(f"--task {options.task}: expected --dataset out of {list(forms)}")
    needed, allowed = _COLUMNS[options.task]
    given = {name for name in _COLUMN_OPTIONS if getattr(options, name) is not None}
    given |= {"text"} if options.prompt is not None else set()
    for name in _COLUMN_OPTIONS:
        flag = "--" + name.replace("_", "-")
        if name in needed - given:
            raise InputError(f"{flag}: expected for --task {options.task}, found none")
        if name in given - needed - allowed:
            raise InputError(f"{flag}: not used by --task {options.task}; leave it out")
    if (options.text is None) == (options.prompt is None):
        raise InputError("expected either --text or --prompt, found both")
    rule = None
    if options.task in LABEL_TASKS:
        names = options.label_names.split(",") if options.label_names is not None else None
        rule = LabelRule(options.task, names, options.positive_above, options.drop_within, options.label_separator)
        rule.check()
    prompt = None if options.prompt is None else Prompt(options.prompt)
    if prompt is not None:
        prompt.check()
    return ColumnForm(
        (options.task,),
        rule=rule,
        text=options.text,
        prompt=prompt,
        pair=options.text_pair,
        target=options.target,
        label=options.label,
        more_labels=options.extra_label or (),
        id=options.id,
        has_header=not options.no_header,
    )


def check_sources(options: argparse.Namespace) -> None:
    given = [name for name in ("folder", "input", "train") if getattr(options, name) is not None]
    if len(given) != 1:
        raise InputError(
            "expected either --input (divided by --split-column or --split-hash-prefix), or --train, or --folder with "
            "--dataset, found " + (" and ".join("--" + name for name in given) or "neither")
        )
    if options.folder is not None and options.dataset is None:
        raise InputError("--folder: expected together with --dataset")
    if options.train is None and (options.validation or options.test):
        raise InputError(f"--validation and --test: expected together with --train, found --{given[0]}")
    if options.dataset == "image_folder" and options.folder is not None and options.split_hash_prefix is not None:
        options.split_column = "id"
        return
    if options.input is None:
        if options.split_column is not None or options.split_hash_prefix is not None:
            raise InputError(
                f"--split-column and --split-hash-prefix: expected together with --input, found --{given[0]}"
            )
        return
    if options.split_hash_prefix is not None:
        options.split_column = options.split_column or options.id
    if options.split_column is None:
        raise InputError("--input: expected --split-column, or --split-hash-prefix with --split-column or --id")


def split_rule(options: argparse.Namespace) -> str:
    """The rule of splits.RULES that is asked for."""
    if options.split_rule != "lst":
        return options.split_rule
    if options.dataset not in glue.TASKS:
        raise InputError(f"--split-rule lst: expected together with --dataset out of {list(glue.TASKS)}")
    return glue.TASKS[options.dataset].lst_rule
