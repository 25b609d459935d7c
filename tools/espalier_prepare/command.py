# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/prepare.py: options -> rows per split -> labels and ids -> one file, and a summary."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from . import labels, rows, splits, store
from .encoding import EncodedSplit, TextEncoder
from .errors import InputError, Place, shorten

_DESCRIPTION = """\
Makes one HDF5 dataset (docs/dataset_format.md) out of tables of text and a tokenizer folder.

Columns are given by name, or by index counted from 0. Every malformed row stops the run and is named by file and line;
rows that are dropped or truncated by an option are counted in the summary."""


@dataclass
class SplitRows:
    """What was read for one split, in file order."""

    texts: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    id_places: dict[str, Place] = field(default_factory=dict)  # for the error about a second one
    num_dropped: int = 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_argument_group("source files: either --input, or --train with --validation and --test")
    source.add_argument(
        "--input", type=Path, nargs="+", help="files that --split-column or --split-hash-prefix divides"
    )
    for name in splits.SPLITS:
        source.add_argument(f"--{name}", type=Path, nargs="+", help=f"files of the {name} split")
    source.add_argument("--format", choices=rows.FORMATS, help="default: by the file's suffix")
    source.add_argument(
        "--no-header", action="store_true", help="the first line of a table is a row; columns are given by index"
    )

    columns = parser.add_argument_group("columns")
    columns.add_argument("--text", required=True, help="column of the text")
    columns.add_argument("--text-pair", help="column of the second text of a pair")
    columns.add_argument("--label", required=True, help="column of the label")
    columns.add_argument("--id", help="column of the row's id, once per split; default: file name and line")

    label = parser.add_argument_group("labels")
    label.add_argument("--task", choices=("classification", "regression"), default="classification")
    label.add_argument("--label-names", help="classes in order, separated by commas; default: those found, sorted")
    label.add_argument(
        "--positive-above", type=float, metavar="X", help="the label is a rating: class 1 above X, class 0 otherwise"
    )
    label.add_argument(
        "--drop-within", type=float, default=0.0, metavar="Y", help="drop rows whose rating is nearer than Y to X"
    )

    split = parser.add_argument_group("splits of --input")
    split.add_argument(
        "--split-column", help="column that says train, validation or test, or whose hash decides (default then: --id)"
    )
    split.add_argument(
        "--split-hash-prefix",
        metavar="PREFIX",
        help="split by SHA-256 of PREFIX + the column: the first 8 hex digits "
        "modulo 10 are 8: validation, 9: test, else train",
    )

    encode = parser.add_argument_group("tokens")
    encode.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    encode.add_argument(
        "--max-length",
        type=int,
        default=512,
        help="longest row in tokens; the longer text of a pair is cut first (default: 512)",
    )
    encode.add_argument("--pad-token-id", type=int, help="default: the tokenizer's or the model's")
    encode.add_argument(
        "--token-types",
        choices=("auto", "keep", "drop"),
        default="auto",
        help="auto: keep them if any is not 0 and the tokenizer's model_input_names, where given, list them",
    )
    parser.add_argument("--output", type=Path, required=True, help="the HDF5 file; replaced only when all is done")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def check_options(options: argparse.Namespace) -> None:
    if (options.input is None) == (options.train is None):
        raise InputError(
            "expected either --input (divided by --split-column or --split-hash-prefix) or --train, found "
            + ("neither" if options.input is None else "both")
        )
    if options.input is not None:
        if options.validation or options.test:
            raise InputError("--validation and --test: expected together with --train, found --input")
        if options.split_hash_prefix is not None:
            options.split_column = options.split_column or options.id
        if options.split_column is None:
            raise InputError("--input: expected --split-column, or --split-hash-prefix with --split-column or --id")
    elif options.split_column is not None or options.split_hash_prefix is not None:
        raise InputError("--split-column and --split-hash-prefix: expected together with --input, found --train")


def read_splits(options: argparse.Namespace, rule: labels.LabelRule) -> dict[str, SplitRows]:
    """All rows by split, in file order."""
    found: dict[str, SplitRows] = {}
    sources = [(None, path) for path in options.input or ()]
    sources += [(name, path) for name in splits.SPLITS for path in getattr(options, name) or ()]
    for split, path in sources:
        for row in rows.read_rows(path, rows.format_of(path, options.format), not options.no_header):
            name = split or splits.split_of(row, options.split_column, options.split_hash_prefix)
            _add_row(found.setdefault(name, SplitRows()), row, options, rule)
    if not any(part.texts for part in found.values()):
        raise InputError(
            f"{', '.join(str(path) for _, path in sources)}: expected at least one row, found none"
            + (" that --drop-within keeps" if options.drop_within else "")
        )
    empty = [name for name, part in found.items() if not part.texts]
    if empty or "train" not in found:
        raise InputError(
            f"expected rows for every split and a train split, found { ({n: len(p.texts) for n, p in found.items()}) }"
        )
    return {name: found[name] for name in splits.SPLITS if name in found}


def _add_row(part: SplitRows, row: rows.Row, options: argparse.Namespace, rule: labels.LabelRule) -> None:
    text = row.get_text(options.text, "text")
    pair = row.get_text(options.text_pair, "text pair") if options.text_pair is not None else None
    label = rule.parse(row.get(options.label), row.place)
    row_id = _id_of(row, options.id)
    if label is None:
        part.num_dropped += 1
        return
    if options.id is not None:
        first = part.id_places.setdefault(row_id, row.place)
        if first is not row.place:
            raise row.place.error(
                f"expected every id once in a split, found {row_id!r} also at {first.path}:{first.line}; "
                "mend the file or leave out --id"
            )
    part.ids.append(row_id)
    part.texts.append(text)
    part.labels.append(label)
    if pair is not None:
        part.pairs.append(pair)


def _id_of(row: rows.Row, column: str | None) -> str:
    if column is None:
        return f"{row.place.path.name}:{row.place.line}"
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise row.place.error(f"expected text or a whole number in column {column!r} (id), found {shorten(value)}")
    return value


def recorded_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the file records of the command line. Files by name only, and nothing that leaves the data alone: the same
    data prepared in another folder gives the same bytes."""
    recorded: dict[str, Any] = {}
    for key, value in vars(options).items():
        if value is None or key in ("output", "quiet"):
            continue
        if isinstance(value, Path):
            value = value.name
        elif isinstance(value, list):
            value = [path.name for path in value]
        recorded[key] = value
    return recorded


def source_digest(options: argparse.Namespace) -> str:
    """SHA-256 of all source files, one after the other in the order given."""
    digest = hashlib.sha256()
    for role in ("input", *splits.SPLITS):
        for path in getattr(options, role) or ():
            digest.update(path.read_bytes())
    return "sha256:" + digest.hexdigest()


def keeps_token_types(choice: str, encoder: TextEncoder, encoded: dict[str, EncodedSplit]) -> bool:
    if choice != "auto":
        return choice == "keep"
    return encoder.names_token_types is not False and any(part.token_type_ids.any() for part in encoded.values())


def run(options: argparse.Namespace) -> None:
    check_options(options)
    rule = labels.LabelRule(
        options.task,
        options.label_names.split(",") if options.label_names is not None else None,
        options.positive_above,
        options.drop_within,
    )
    rule.check()
    encoder = TextEncoder.open(options.tokenizer, options.max_length, options.pad_token_id)
    parts = read_splits(options, rule)
    names = (
        []
        if options.task == "regression"
        else rule.class_names([value for part in parts.values() for value in part.labels])
    )
    if options.task == "classification" and len(names) < 2:
        raise InputError(f"expected at least two classes in column {options.label!r}, found {names}")

    with tqdm(
        total=sum(len(part.texts) for part in parts.values()),
        unit=" rows",
        desc="tokenizing",
        disable=options.quiet,
        file=sys.stderr,
    ) as bar:
        encoded = {
            name: encoder.encode(part.texts, part.pairs if options.text_pair is not None else None, bar)
            for name, part in parts.items()
        }

    has_token_types = keeps_token_types(options.token_types, encoder, encoded)
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for name, part in parts.items():
        id_bytes, id_offsets = store.ragged_text(part.ids)
        arrays[name] = {
            "input_ids": encoded[name].input_ids,
            "input_offsets": encoded[name].input_offsets,
            "labels": labels.to_array(options.task, names, part.labels),
            "id_bytes": id_bytes,
            "id_offsets": id_offsets,
        }
        if has_token_types:
            arrays[name]["token_type_ids"] = encoded[name].token_type_ids
    attributes = {
        "format_version": store.FORMAT_VERSION,
        "task": options.task,
        "num_labels": 1 if options.task == "regression" else len(names),
        "label_names": json.dumps(names),
        "tokenizer_digest": encoder.digest,
        "source_digest": source_digest(options),
        "pad_token_id": encoder.pad_token_id,
        "vocab_size": encoder.vocab_size,
        "max_length": options.max_length,
        "prepare_options": json.dumps(recorded_options(options), sort_keys=True),
    }
    store.write_dataset(options.output, attributes, arrays)
    print_summary(options, parts, encoded, names)


def print_summary(
    options: argparse.Namespace, parts: dict[str, SplitRows], encoded: dict[str, EncodedSplit], names: list[str]
) -> None:
    print(f"{'split':<12}{'rows':>9}{'dropped':>9}{'truncated':>11}{'tokens':>11}{'longest':>9}  labels")
    for name, part in parts.items():
        lengths = np.diff(encoded[name].input_offsets)
        if options.task == "regression":
            about = f"{min(part.labels):g} to {max(part.labels):g}, mean {np.mean(part.labels):.4g}"
        else:
            counts = Counter(part.labels)
            about = ", ".join(f"{label} {counts[label]}" for label in names[:8]) + (", ..." if len(names) > 8 else "")
        print(
            f"{name:<12}{len(part.texts):>9}{part.num_dropped:>9}{encoded[name].num_truncated:>11}"
            f"{lengths.sum():>11}{lengths.max():>9}  {about}"
        )
    print(f"wrote {options.output} ({options.output.stat().st_size} bytes)")


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    try:
        run(options)
    except InputError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"prepare.py: {error.filename or options.output}: {error.strerror or error}", file=sys.stderr)
        return 5
    return 0
