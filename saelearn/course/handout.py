"""What a class gets: chosen lessons without solutions, what they link to, and a cover.

The zip holds the same bytes each time, and it is all that grading needs later: `saelearn grade`
takes the checks and points from it, not from the lessons as they may have become meanwhile.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import saelearn.course.points as of
from saelearn import artifacts
from saelearn.course.versions import lessons, notebooks_dir
from saelearn.errors import ArtifactError, Refusal

COVER = "START_HERE.md"
INSTALL = """\
You need Python 3.11 or newer. In a folder of your own:

```bash
python -m venv saelearn-env
. saelearn-env/bin/activate        # Windows: saelearn-env\\Scripts\\activate
pip install {package}
jupyter lab
```"""


@dataclass(frozen=True)
class Release:
    """What was handed out: lesson's name -> its notebook, as the students got it."""

    lessons: dict[str, dict[str, Any]]
    digest: str


def release(
    chosen: Sequence[str],
    out: Path,
    *,
    due: str = "",
    hand_in: str = "",
    wheel: Path | None = None,
    source: Path | None = None,
) -> list[str]:
    """Write the folder `out` and `out.zip` for a class; returns the names of the lessons.

    Args:
        chosen: which lessons: `04` or `04_first_sae`.
        out: the folder, new or of an earlier release.
        due: by when to hand in, in words.
        hand_in: how to hand in, in words.
        wheel: the package, to be handed out as well.
        source: the folder of the complete lessons.

    Raises:
        Refusal: there is no such lesson, or a lesson's checks cannot be told apart.
        ArtifactError: the folder cannot be written.
    """
    source = source or notebooks_dir()
    files: dict[str, bytes] = {}
    graded: dict[str, dict[str, Any]] = {}
    for path in find(chosen, source):
        graded[path.stem] = of.released(artifacts.read_json(path), path.stem)
        files[path.name] = (
            json.dumps(graded[path.stem], indent=1, ensure_ascii=False) + "\n"
        ).encode()
        files |= _linked(graded[path.stem], source)
    if wheel:
        files[wheel.name] = wheel.read_bytes()
    files[COVER] = _cover(graded, due, hand_in, wheel).encode()
    with artifacts.replacing(out) as temporary:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
    with artifacts.replacing(out.with_name(f"{out.name}.zip")) as temporary:
        temporary.write_bytes(_zipped(files))
    return list(graded)


def read_release(path: Path) -> Release:
    """Read what `release` wrote: the zip, or the folder beside which it lies.

    Raises:
        ArtifactError: it is missing, damaged, or holds no lesson with checks.
    """
    path = path.with_name(f"{path.name}.zip") if path.is_dir() else path
    remedy = "name the zip that `saelearn release` wrote"
    try:
        with zipfile.ZipFile(path) as opened:
            names = [name for name in opened.namelist() if name.endswith(".ipynb")]
            found = {name.removesuffix(".ipynb"): json.loads(opened.read(name)) for name in names}
            checks = any(of.is_check(cell) for each in found.values() for cell in each["cells"])
    except Exception as error:  # a zip can be broken in many ways: zlib, encodings, JSON, cells
        raise ArtifactError(
            f"a release in {path}", f"{type(error).__name__}: {error}", remedy
        ) from error
    if not checks:
        raise ArtifactError("lessons with checks", f"{path.name} without any", remedy)
    return Release(found, artifacts.sha256(path))


def find(chosen: Sequence[str], source: Path | None = None) -> list[Path]:
    """The complete lessons that are meant by `04`, `4` or `04_first_sae`, in their order.

    Raises:
        Refusal: there is no such lesson.
    """
    known = lessons(source)
    found = []
    for name in chosen:
        number = name.zfill(2) if name.isdigit() else name.removesuffix(".ipynb")
        here = [path for path in known if number in (path.stem, path.stem[:2])]
        if not here:
            raise Refusal(
                "a lesson's number: one of " + ", ".join(path.stem[:2] for path in known),
                name,
                "name lessons as in `saelearn release 04 05 --out for_my_class`",
            )
        found += here
    return sorted(set(found))


def _linked(notebook: dict[str, Any], source: Path) -> dict[str, bytes]:
    """The files that a lesson's prose links to and shows; other lessons are not among them."""
    prose = "\n".join(of.text(c) for c in notebook["cells"] if c["cell_type"] == "markdown")
    targets = set(re.findall(r"\]\(([^)\s#]+)", prose) + re.findall(r"src=[\"']([^\"']+)", prose))
    here = {t: source / t for t in targets if not re.match(r"[a-z]+:", t) and ".." not in t}
    return {
        name: path.read_bytes()
        for name, path in sorted(here.items())
        if path.is_file() and path.suffix != ".ipynb"
    }


def _zipped(files: dict[str, bytes]) -> bytes:
    """A zip whose bytes depend on the files alone: sorted, without dates."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)  # of 1980, which is where zip's time begins
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            target.writestr(entry, files[name])
    return buffer.getvalue()


def _cover(graded: dict[str, dict], due: str, hand_in: str, wheel: Path | None) -> str:
    rows = []
    for name, notebook in graded.items():
        checked, written = (
            sum(cell["metadata"]["nbgrader"]["points"] for cell in notebook["cells"] if kind(cell))
            for kind in (of.is_check, of.is_written)
        )
        time = re.search(r"\*\*Time\*\*: (?:about )?(.*?)[;,.]", of.text(notebook["cells"][0]))
        title = of.text(notebook["cells"][0]).splitlines()[0].lstrip("# ")
        link, minutes = f"[{name}]({name}.ipynb)", time[1] if time else ""
        rows.append(f"| {link} | {title} | {minutes} | {checked:g} | {written:g} |")
    package = f"'./{wheel.name}[lab]'" if wheel else "'saelearn[lab]'"
    return f"""# Start here

{len(rows)} lesson{"s" * (len(rows) > 1)} on sparse autoencoders.

| lesson | question | time | points | and in words |
|---|---|---|---|---|
{chr(10).join(rows)}

## Install

{INSTALL.format(package=package)}

No account, GPU or network is needed afterwards.

## Work

Write your answers where the dots are, and run the check below each. A check never counts
against you: try as often as you like. Add cells of your own where you need them. The locked check
cells are put back as they were before anything is graded.

Predictions earn their point for being made, right or wrong. Some exercises give a part of their
points for a part of the answer. Questions at a lesson's end are answered in words: double-click
the line below one, write in its place. Your teacher reads them.

## Hand in

{hand_in or "Save the notebooks and hand them in as your teacher told you, as files or as one zip."}
Keep the names of the files; clear no cells.

**By when:** {due or "as your teacher told you"}.
"""
