"""Lessons executed for a commit: outputs stored clean, pictures described, all or nothing."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from notebook_rules import faults

from saelearn.cli import commands as cli
from saelearn.course import execute
from saelearn.errors import Refusal

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
ALT = "a line that rises & <falls> never"


def lesson(folder: Path, *cells: tuple[str, dict]) -> Path:
    notebook = new_notebook(cells=[new_markdown_cell("# A lesson", id="title")])
    for number, (source, metadata) in enumerate(cells):
        notebook.cells.append(new_code_cell(source, id=f"c{number}", metadata=metadata))
    nbformat.write(notebook, folder / "20_lesson.ipynb")
    return folder / "20_lesson.ipynb"


def test_a_lesson_is_stored_fit_to_commit_and_twice_the_same(tmp_path, capsys):
    path = lesson(
        tmp_path,
        ("import os\nprint(os.environ['OMP_NUM_THREADS'])\nprint(__import__('os').getcwd())", {}),
        (PLOT, {"alt": ALT}),
        (f"{PLOT}\n{PLOT}", {"alt": ["the first of two lines", "the second of two lines"]}),
        ("import ipywidgets\nipywidgets.IntSlider()", {}),
    )
    assert cli.main(["execute", "20", "--folder", str(tmp_path)]) == 0
    assert "20_lesson.ipynb: stored" in capsys.readouterr().out
    first = path.read_bytes()
    notebook = nbformat.read(path, as_version=4)
    assert faults(notebook) == []
    assert notebook.cells[1].outputs[0].text == f"1\n{tmp_path}\n"
    assert notebook.metadata.language_info == {"name": "python"}
    said = [o.metadata["image/png"]["alt"] for c in notebook.cells[2:4] for o in c.outputs]
    assert said == [ALT, "the first of two lines", "the second of two lines"]
    execute.execute(path)
    assert path.read_bytes() == first
    page, _ = HTMLExporter(template_name="classic").from_notebook_node(notebook)
    assert 'alt="a line that rises &amp; &lt;falls&gt; never"' in page
    assert 'alt="the second of two lines"' in page


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (("1 / 0", {}), "ZeroDivisionError"),
        ((PLOT, {}), "an alt text for each of 1 pictures of cell c0"),
        ((f"{PLOT}\n{PLOT}", {"alt": ALT}), "each of 2 pictures"),
    ],
)
def test_what_fails_leaves_the_lesson_as_it_was(tmp_path, cell, said):
    path = lesson(tmp_path, cell)
    before = path.read_bytes()
    with pytest.raises(Refusal, match=said):
        execute.execute(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def undescribed(notebook) -> int:
    return sum("without its alt text" in fault for fault in faults(notebook))


def test_pictures_without_their_alt_text_are_counted():
    picture = {"output_type": "display_data", "data": {"image/png": ""}, "metadata": {}}
    cell = new_code_cell("", id="a", metadata={"alt": ALT}, outputs=[copy.deepcopy(picture)])
    notebook = new_notebook(cells=[cell])
    assert undescribed(notebook) == 1
    execute.tidy(notebook)
    assert undescribed(notebook) == 0
    cell["metadata"]["alt"] = "another text than the picture has"
    assert undescribed(notebook) == 1
