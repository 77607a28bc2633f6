"""The check of the notebooks sees what changed, and only that."""

import base64
import io
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
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
        ([text("accuracy 91.2")], [text("accuracy 75.2")]),
        ([text("91.2")], [text("91.2"), text(" 92.0")]),
        ([text("1")], []),
        ([text("1")], [picture(100)]),
        ([picture(100)], [picture(150)]),
        ([text("1")], [new_output("error", ename="ValueError", evalue="", traceback=[])]),
        (
            [new_output("execute_result", {"text/plain": "<HTML>", "text/html": "<b>9</b>"})],
            [new_output("execute_result", {"text/plain": "<HTML>", "text/html": "<b>5</b>"})],
        ),
    ],
)
def test_another_result_is_noticed(check, stored, made, exact):
    assert len(seen(check, stored, made, exact)) == 1


@pytest.mark.parametrize(
    ("stored", "made"),
    [
        ("91.2 ± 0.5", "90.9 ± 0.7"),
        ("+1.2 in 3 seeds", "-0.3 in 3 seeds"),
        ("is better: +4.5 ± 4.1 in 5 seeds", "no difference that 5 seeds show: +4.2 ± 4.3"),
    ],
)
def test_numbers_may_differ_a_little_on_another_machine_only(check, stored, made):
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


@pytest.mark.parametrize("path", sorted(ROOT.glob("nbs/*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_was_run(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if "stderr" in output.get("name", "")]
    assert path.stat().st_size < 600_000
