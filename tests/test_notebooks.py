"""The check of the notebooks, `.ci/notebooks`, and what is stored in them."""

import base64
import io
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from mixaug.compare import Comparison

ROOT = Path(__file__).parent.parent
CHECK = SimpleNamespace(**runpy.run_path(str(ROOT / ".ci/notebooks")))
NOTEBOOKS = {path.name: nbformat.read(path, as_version=4) for path in sorted(ROOT.glob("nbs/*.ipynb"))}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def picture(shade):
    file = io.BytesIO()
    Image.new("RGB", (80, 60), (shade,) * 3).save(file, "png")
    return new_output("display_data", {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": "<>"})


CAT, DOG = (new_output("execute_result", {"text/plain": "<HTML>", "text/html": name}) for name in ("cat", "dog"))
ERROR = new_output("error", ename="ValueError", evalue="", traceback=[])
WARNING = new_output("stream", name="stderr", text="a path of this machine")
CASES = [  # outputs, a text for what is printed: stored, made; number of differences on the same and another machine
    (["lam 0.50\n", picture(100), CAT], [WARNING, "lam ", "0.50\n", picture(100), CAT], 0, 0),
    (["is better: +9.0"], ["is worse: +9.0"], 1, 1),
    (["plain 75.2, mixed 92.6"], ["plain 92.6, mixed 75.2"], 1, 1),
    (["partner 1 2 0"], ["partner 2 0 1"], 1, 1),
    (["91.2"], ["91.2", " 92.0"], 1, 1),
    (["1"], [], 1, 1),
    ([picture(100)], [picture(150)], 1, 1),
    (["1"], [ERROR], 1, 1),
    ([CAT], [DOG], 1, 1),
    (["91.2 ± 0.5"], ["90.9 ± 0.7"], 1, 0),
    (["+1.2 ± 1.1 * in 3 seeds"], ["+1.2 ± 1.3 in 3 seeds"], 1, 0),
]


@pytest.mark.parametrize(("stored", "made", "same", "other"), CASES)
def test_only_rounding_errors_on_another_machine_are_tolerated(stored, made, same, other):
    both = []
    for outputs in (stored, made):
        outputs = [new_output("stream", name="stdout", text=o) if isinstance(o, str) else o for o in outputs]
        both.append(new_notebook(cells=[new_markdown_cell("text"), new_code_cell("", outputs=outputs)]))
    assert [len(list(CHECK.differences(*both, exact))) for exact in (True, False)] == [same, other]


def test_run_store_and_compare(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.ipynb"
    monkeypatch.setenv("MPLBACKEND", "agg")  # without pictures in notebooks, if the check did not remove it

    def main(*options, stored=None):
        if stored:
            nbformat.write(stored, path)
        monkeypatch.setattr(sys, "argv", ["notebooks", *options, str(path)])
        return CHECK.main(), capsys.readouterr().out

    code = "import os\nimport matplotlib.pyplot as plt\nprint(2 * 21, os.path.basename(os.getcwd()))\nplt.plot([0, 1]);"
    assert main(stored=new_notebook(cells=[new_code_cell(code)]))[0] == 1  # nothing is stored
    assert main("--write")[0] == main()[0] == 0
    stored = nbformat.read(path, as_version=4)
    printed, drawn = CHECK.outputs(stored.cells[0])
    assert (printed, drawn[0]) == (("text", f"42 {tmp_path.name}\n"), "picture")
    stored.cells[0].outputs[0].text = "41 here\n"
    assert "text differs" in main(stored=stored)[1]
    stored.cells[0].source = "1 / 0"
    code, out = main(stored=stored)
    assert (code, "ZeroDivisionError" in out) == (1, True)
    monkeypatch.setitem(CHECK.run.__globals__, "MINUTES", 6 / 60)  # of the whole notebook
    slow = new_notebook(cells=[new_code_cell("import time\ntime.sleep(4)") for _ in range(3)])
    assert "timed out" in main(stored=slow)[1]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_stored_as_it_was_run(name):
    code = [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if "stderr" in output.get("name", "")]
    assert (ROOT / "nbs" / name).stat().st_size < 600_000


def test_every_gain_that_is_told_comes_from_stored_runs_or_the_output_of_a_notebook():
    fashion = Comparison.read(ROOT / "nbs/runs/methods.jsonl")
    gains = re.findall(r"^\| `(\w+)`.* \| ([+-]\d.*?) \| [^|]*\|$", (ROOT / "README.md").read_text(), re.M)
    more = Comparison.read(ROOT / "nbs/runs/more than two.jsonl")
    four = [f"{more.difference('accuracy %', label):.1f}" for label in ("RICAP(.3)", "Mosaic(.3)")]
    assert len(gains) == 9
    gains.remove(("RICAP", ", ".join(four)))
    for name, told in gains:
        (label,) = [label for label in fashion.methods if label.startswith(f"{name}(")]
        assert f"{fashion.difference('accuracy %', label):.1f}" == told
    outputs = "\n".join(text for book in NOTEBOOKS.values() for cell in book.cells for kind, text in CHECK.outputs(cell)
                        if kind == "text")  # fmt: skip
    for page in ("README.md", "nbs/guides/choose.md", "nbs/guides/partners.md"):
        for number in re.findall(r"\d+\.\d ± \d+\.\d", (ROOT / page).read_text()):
            assert number in outputs


def test_the_gallery_shows_each_panel_of_the_picture(tmp_path):
    CHECK.cut(ROOT / ".github/methods.jpg", tmp_path)
    page = (ROOT / "nbs/gallery.md").read_text()
    stored = {path.name for path in (ROOT / "nbs/pictures").iterdir()}
    cut = {path.name for path in tmp_path.iterdir()}
    assert stored == set(re.findall(r"\]\(pictures/(\w+\.jpg)\)", page)) == {*cut, "options.jpg"}
    for name in cut:
        with Image.open(tmp_path / name) as new, Image.open(ROOT / "nbs/pictures" / name) as old:
            assert new.size == old.size
            assert abs(np.asarray(new, float) - np.asarray(old, float)).mean() < 1


def test_readme_and_gallery_show_the_pictures_of_a_notebook():
    readme = (ROOT / "README.md").read_text()
    for name, shown in CHECK.SHOWN.items():
        found = (data for cell in NOTEBOOKS[name].cells for kind, data in CHECK.outputs(cell) if kind == "picture")
        assert (base64.b64decode(next(found)) == (ROOT / shown).read_bytes(), f"]({shown})" in readme) == (True, True)
        assert base64.b64decode(next(found)) == (ROOT / "nbs" / CHECK.OPTIONS).read_bytes()
