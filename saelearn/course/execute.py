"""A lesson run from a fresh kernel and stored as it is committed: what nbval compares later.

Beside the outputs it writes what makes them readable and their difference small: alt text on each
picture, from the cell's metadata; no times, widget states or versions.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

from saelearn import artifacts
from saelearn.errors import Refusal

PICTURES = ("image/png", "image/svg+xml", "image/jpeg")
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path, *, timeout: int = 120) -> None:
    """Run a lesson and store its outputs, on one thread as the tests do; all of it or nothing.

    Args:
        path: the complete lesson.
        timeout: seconds that one cell may take.

    Raises:
        Refusal: a cell raised, or a cell has not as many alt texts as pictures.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    )
    with tempfile.TemporaryDirectory(prefix="saelearn-") as scratch:
        own = {"IPYTHONDIR": scratch, "OMP_NUM_THREADS": "1"}  # no start-up files of the author's
        own |= {"SAELEARN_REAL_MODEL": "none"}  # what is stored is what all can compare
        try:
            client.execute(env={**os.environ, **own})
        except (CellExecutionError, CellTimeoutError) as error:
            remedy = "mend the cell; the lesson is stored as it was"
            raise Refusal(f"{path.name} to run to its end", str(error), remedy) from error
    tidy(notebook)
    with artifacts.replacing(path) as temporary:
        nbformat.write(notebook, temporary)


def tidy(notebook: dict[str, Any]) -> None:
    """In place: alt text on each picture, and nothing that differs from run to run for no reason.

    Raises:
        Refusal: a cell has not as many alt texts as pictures.
    """
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"]["language_info"] = {"name": "python"}
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
        _describe(cell)
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):  # its model is not stored: any name will do
                name = uuid.uuid5(uuid.NAMESPACE_OID, cell["id"]).hex
                output["data"][WIDGET]["model_id"] = name


def pictures(cell: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Each picture that a cell shows: the metadata of its output, and of which kind it is."""
    return [
        (output["metadata"], kind)
        for output in cell.get("outputs", [])
        for kind in PICTURES
        if kind in output.get("data", {})
    ]


def alt_texts(cell: dict[str, Any]) -> list[str]:
    """What the metadata of a cell says of its pictures: one text, or a list with one for each."""
    alt = cell["metadata"].get("alt", [])
    return [alt] if isinstance(alt, str) else list(alt)


def _describe(cell: dict[str, Any]) -> None:
    shown, said = pictures(cell), alt_texts(cell)
    if shown and len(shown) != len(said):
        raise Refusal(
            f"an alt text for each of {len(shown)} pictures of cell {cell['id']}",
            f"{len(said)}",
            'write the cell\'s metadata, "alt": "..." or a list of them',
        )
    for (metadata, kind), alt in zip(shown, said, strict=False):
        metadata[kind] = {**metadata.get(kind, {}), "alt": alt}
