# SPDX-License-Identifier: Apache-2.0
"""The command of tools/prepare.py: options -> examples per split -> arrays -> one file, and a summary."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import images, splits, store
from .encoding import TextEncoder
from .errors import InputError, Place, Problems, RowError, run_program
from .forms import Example, Form
from .options import check_sources, make_form, make_parser, split_rule
from .tasks import EncodedSplit, Encoder

Source = tuple[str | None, Path]  # the split, if the file says it


def find_sources(options: argparse.Namespace, form: Form) -> list[Source]:
    if options.folder is not None:
        found = form.find_files(options.folder)
        if options.split_column is not None:
            if found != {"train": [options.folder]}:
                raise InputError(f"{options.folder}: expected no folders of splits beside a hash, found {list(found)}")
            return [(None, options.folder)]
        return [(split, path) for split, paths in found.items() for path in paths]
    sources: list[Source] = [(None, path) for path in options.input or ()]
    return sources + [(name, path) for name in splits.SPLITS for path in getattr(options, name) or ()]


def read_examples(
    options: argparse.Namespace, form: Form, sources: Sequence[Source], problems: Problems
) -> tuple[dict[str, list[Example]], Counter[str]]:
    """All examples by split, in file order, and how many an option dropped."""
    parts: dict[str, list[Example]] = {}
    dropped: Counter[str] = Counter()
    places: dict[tuple[str, str], Place] = {}  # of ids, for the error about a second one
    for named_split, path in sources:
        for row in form.rows(path, form.format_of(path, options.format)):
            try:
                if isinstance(row, RowError):
                    raise row
                split = named_split or splits.split_of(row, options.split_column, options.split_hash_prefix)
                part = parts.setdefault(split, [])
                example = form.example(row)
                if example is None:
                    dropped[split] += 1
                    continue
                first = places.setdefault((split, example.id), row.place) if options.id is not None else row.place
                if first is not row.place:
                    raise row.place.error(
                        f"expected every id once in a split, found {example.id!r} also at {first.path}:{first.line}; "
                        "mend the file or leave out --id"
                    )
                part.append(example)
            except RowError as error:
                problems.add(error)
    problems.require_none()
    if not any(parts.values()):
        raise InputError(
            f"{', '.join(str(path) for _, path in sources)}: expected at least one row, found none"
            + (" that --drop-within keeps" if options.drop_within else "")
        )
    return parts, dropped


def require_rows(parts: dict[str, list[Example]]) -> dict[str, list[Example]]:
    if "train" not in parts or not all(parts.values()):
        counts = {name: len(part) for name, part in parts.items()}
        raise InputError(f"expected rows for every split and a train split, found {counts}")
    return {name: parts[name] for name in splits.SPLITS if name in parts}


def recorded_options(options: argparse.Namespace, sources: Sequence[Source]) -> dict[str, Any]:
    """What the file records of the command line. Files by name only, and nothing that leaves the data alone: the same
    data prepared in another folder gives the same bytes."""
    files: dict[str, list[str]] = {}
    for split, path in sources:
        files.setdefault(split or "input", []).append("." if path == options.folder else path.name)
    recorded: dict[str, Any] = {"files": files}
    for key, value in vars(options).items():
        if value is None or key in ("output", "quiet", "folder", "input", *splits.SPLITS):
            continue
        names = [path.name for path in value] if key == "features" else value
        recorded[key] = value.name if isinstance(value, Path) else names
    return recorded


def source_digest(form: Form, sources: Sequence[Source], features: Sequence[Path]) -> str:
    """SHA-256 of all source files, one after the other in the order read."""
    digest = hashlib.sha256()
    for file in [file for _, path in sources for file in (path, *form.companions(path))] + list(features):
        if file.is_file():  # a folder of images is its companions
            with file.open("rb") as content:
                while piece := content.read(1 << 24):
                    digest.update(piece)
    return "sha256:" + digest.hexdigest()


def open_reader(options: argparse.Namespace) -> TextEncoder | images.ImageDecoder:
    """What makes arrays of texts or of images."""
    if options.task == images.TASK:
        return images.ImageDecoder.from_options(options)
    return TextEncoder.open(options.tokenizer, options.pad_token_id, options.eos_token_id)


def token_attributes(tokenizer: TextEncoder, options: argparse.Namespace) -> dict[str, str | int]:
    return {
        "tokenizer_digest": tokenizer.digest,
        "pad_token_id": tokenizer.pad_token_id,
        "vocab_size": tokenizer.vocab_size,
        "max_length": options.max_length,
    }


def drop_token_types(choice: str, tokenizer: TextEncoder, encoded: dict[str, EncodedSplit]) -> None:
    """Takes them out of all splits, unless they say something and the model wants them."""
    types = [part.arrays["token_type_ids"] for part in encoded.values() if "token_type_ids" in part.arrays]
    keeps = tokenizer.names_token_types is not False and any(part.any() for part in types)
    if choice == "drop" or (choice == "auto" and not keeps):
        for part in encoded.values():
            part.arrays.pop("token_type_ids", None)


def run(options: argparse.Namespace) -> None:
    check_sources(options)
    form = make_form(options)
    rule = split_rule(options)
    reader = open_reader(options)
    problems = Problems(options.drop_malformed)
    sources = find_sources(options, form)
    parts, dropped = read_examples(options, form, sources, problems)
    parts = require_rows(splits.RULES[rule](parts, options.split_seed))
    parts = {name: form.in_split(name, part) for name, part in parts.items()}

    encoder = Encoder(options.task, form, reader, options, problems)
    encoder.name_classes([example for part in parts.values() for example in part])
    sequences_per_example = 2 if options.task == "seq2seq" else 1
    total = sum(len(example.choices) or 1 for part in parts.values() for example in part) * sequences_per_example
    with tqdm(total=total, unit=" rows", desc="encoding", disable=options.quiet, file=sys.stderr) as bar:
        encoded = {name: encoder.encode(part, bar) for name, part in parts.items()}
    if isinstance(reader, TextEncoder):
        drop_token_types(options.token_types, reader, encoded)

    counts: dict[str, Any] = {
        name: {"rows": part.num_rows, "dropped": dropped[name], "truncated": part.num_truncated}
        for name, part in encoded.items()
    }
    attributes = {
        "format_version": store.FORMAT_VERSION,
        "task": options.task,
        **encoder.attributes(),
        **(reader.attributes() if isinstance(reader, images.ImageDecoder) else token_attributes(reader, options)),
        "source_digest": source_digest(form, sources, options.features or ()),
        "prepare_options": json.dumps(recorded_options(options, sources), sort_keys=True),
        "prepare_counts": json.dumps(counts | {"malformed": problems.counts}, sort_keys=True),
    }
    store.write_dataset(options.output, attributes, {name: part.arrays for name, part in encoded.items()})
    print_summary(options, encoded, dropped, problems)


def print_summary(
    options: argparse.Namespace, encoded: dict[str, EncodedSplit], dropped: Counter[str], problems: Problems
) -> None:
    print(f"{'split':<12}{'rows':>9}{'dropped':>9}{'truncated':>11}{'tokens':>11}{'longest':>9}  labels or targets")
    for name, part in encoded.items():
        print(
            f"{name:<12}{part.num_rows:>9}{dropped[name]:>9}{part.num_truncated:>11}"
            f"{part.lengths.sum():>11}{part.lengths.max():>9}  {part.about}"
        )
    for name, count in problems.counts.items():
        print(f"{name}: left out {count} malformed rows (--drop-malformed)")
    print(f"wrote {options.output} ({options.output.stat().st_size} bytes)")


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    return run_program("prepare.py", lambda: run(options), options.output)
