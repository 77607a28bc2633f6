"""The check of the notebooks sees what changed, and only that."""

import base64
import io
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient.exceptions import CellTimeoutError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def check():
    return SimpleNamespace(**runpy.run_path(str(ROOT / ".ci/notebooks")))


def text(words):
    return new_output("stream", name="stdout", text=words)


def picture(shade):
    file = io.BytesIO()
    Image.new("RGB", (80, 60), (shade,) * 3).save(file, "png")
    return new_output("display_data", {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": "<>"})


def notebook(*outputs):
    return new_notebook(cells=[new_markdown_cell("text"), new_code_cell("code", outputs=list(outputs))])


def warning():
    return new_output("stream", name="stderr", text="a path of this machine")


def seen(check, stored, made, exact):
    return list(check.differences(notebook(*stored), notebook(*made), exact))


@pytest.mark.parametrize("exact", [True, False])
def test_the_same_is_the_same(check, exact):
    table = new_output("execute_result", {"text/plain": "1", "text/html": "<b>1</b>"})
    cell = [text("lam 0.50\n"), picture(100), table]
    assert seen(check, cell, [warning(), text("lam "), text("0.50\n"), *cell[1:]], exact) == []


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("stored", "made"),
    [
        ([text("is better: +9.0")], [text("is worse: +9.0")]),
        ([text("the law holds: True")], [text("the law holds: False")]),
        ([text("accuracy 91.2")], [text("accuracy 75.2")]),
        ([text("accuracy 0.739")], [text("accuracy 0.612")]),
        ([text("plain 75.2, mixed 92.6")], [text("plain 92.6, mixed 75.2")]),
        ([text("partner 1 2 0")], [text("partner 2 0 1")]),
        ([text("91.2")], [text("91.2"), text(" 92.0")]),
        ([text("1")], []),
        ([text("1")], [picture(100)]),
        ([picture(100)], [picture(150)]),
        ([text("1")], [new_output("error", ename="ValueError", evalue="", traceback=[])]),
        (
            [new_output("execute_result", {"text/plain": "<HTML>", "text/html": "<b>cat</b>"})],
            [new_output("execute_result", {"text/plain": "<HTML>", "text/html": "<b>dog</b>"})],
        ),
    ],
)
def test_another_result_is_noticed(check, stored, made, exact):
    assert len(seen(check, stored, made, exact)) == 1


@pytest.mark.parametrize(
    ("stored", "made"),
    [("91.2 ± 0.5", "90.9 ± 0.7"), ("+1.2 ± 1.1 * in 3 seeds", "+1.2 ± 1.3 in 3 seeds"), ("loss 0.834", "loss 0.851")],
)
def test_decimals_may_differ_a_little_on_another_machine_only(check, stored, made):
    assert seen(check, [text(stored)], [text(made)], exact=False) == []
    assert len(seen(check, [text(stored)], [text(made)], exact=True)) == 1


def test_a_notebook_is_run_and_stored_and_found_stale(check, tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("import os\nprint(2 * 21, os.path.basename(os.getcwd()))")]), path)

    def main(*options):
        monkeypatch.setattr(sys, "argv", ["notebooks", *options, str(path)])
        return check.main()

    assert main() == 1  # never run
    assert main("--write") == 0
    stored = nbformat.read(path, as_version=4)
    assert stored.cells[0].outputs[0].text == f"42 {tmp_path.name}\n"
    assert main() == 0
    stored.cells[0].outputs[0].text = "41 here\n"
    nbformat.write(stored, path)
    assert main() == 1
    assert "another text" in capsys.readouterr().out
    stored.cells[0].source = "1 / 0"
    nbformat.write(stored, path)
    assert main() == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_a_backend_for_scripts_does_not_keep_pictures_out(check, tmp_path, monkeypatch):
    path = tmp_path / "a.ipynb"
    code = "import matplotlib.pyplot as plt\nplt.plot([0, 1]);"
    nbformat.write(new_notebook(cells=[new_code_cell(code)]), path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(sys, "argv", ["notebooks", "--write", str(path)])
    assert check.main() == 0
    assert [kind for kind, _ in check.outputs(nbformat.read(path, as_version=4).cells[0])] == ["picture"]


def test_a_notebook_that_takes_too_long_is_ended(check, tmp_path, monkeypatch):
    path = tmp_path / "a.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("import time\ntime.sleep(4)") for _ in range(3)]), path)
    monkeypatch.setitem(check.run.__globals__, "MINUTES", 6 / 60)
    with pytest.raises(CellTimeoutError):  # though no single cell takes so long
        check.run(path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("nbs/*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_was_run(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if "stderr" in output.get("name", "")]
    assert path.stat().st_size < 600_000
    assert re.match(r"# \w", notebook.cells[0].source)


def test_the_readme_shows_the_tables_of_the_notebooks():
    readme = (ROOT / "README.md").read_text()
    cells = [cell for path in ROOT.glob("nbs/*.ipynb") for cell in nbformat.read(path, as_version=4).cells]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    tables = [output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]
    assert len(tables) == 2
    assert [table for table in tables if table not in readme] == []


def test_the_readme_shows_the_picture_of_a_notebook(check):
    for name, shown in check.SHOWN.items():
        cells = nbformat.read(ROOT / "nbs" / name, as_version=4).cells
        pictures = [content for cell in cells for kind, content in check.outputs(cell) if kind == "picture"]
        assert base64.b64decode(pictures[0]) == (ROOT / shown).read_bytes()
        assert f"]({shown})" in (ROOT / "README.md").read_text()
