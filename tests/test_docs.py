"""The API reference: every public name is on its page, nothing on it is broken, and the examples are right."""

import doctest
import re
import runpy
from pathlib import Path

import pytest
import torch

import mixaug

ROOT = Path(__file__).parent.parent
PUBLIC = {name: getattr(mixaug, name) for name in mixaug.__all__}
FOUND = [test for name, o in PUBLIC.items() for test in doctest.DocTestFinder().find(o, name, globs=PUBLIC)]
EXAMPLES = {test.name: test for test in FOUND if test.examples}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_give_what_they_say(name):
    """As for a reader who has imported torch and the public names, and nothing else."""
    EXAMPLES[name].globs = {**PUBLIC, "torch": torch}
    assert doctest.DocTestRunner().run(EXAMPLES[name]).failed == 0


def test_no_example_is_left_untried():
    written = sum(path.read_text().count(">>> ") for path in (ROOT / "mixaug").glob("*.py"))
    assert sum(len(test.examples) for test in EXAMPLES.values()) == written


def build(folder):
    pytest.importorskip("pdoc")
    runpy.run_path(str(ROOT / ".ci/docs"))["build"](folder)
    return (folder / "index.html").read_text(encoding="utf-8")


def test_the_reference_has_every_name_with_its_arguments_and_loads_nothing(tmp_path):
    html = build(tmp_path)
    anchors = re.findall(r' id="(\w+(?:\.\w+)?)"', html)
    assert {*mixaug.__all__, "Learner.mixup", "Learner.show_mixed", "MixHandler.show_batch"} <= set(anchors)
    (table,) = re.findall(r'(?s)<div id="SaliencyMix.__init__".*?</table>', html)
    assert re.findall(r"<td><code>(\w+)", table)[:3] == ["alpha", "fold", "prob"]
    assert "Share of the batches that are mixed" in table
    assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?!data:)', html)


def undocumented(): ...


def astray():
    """As `Mixup`, `is_average` and `mixaug.loss.no_such`; see arxiv.org/abs/1710.09412."""


def odd(x: "Tensro"):  # noqa: F821
    """Do nothing."""


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (undocumented, "undocumented is public and not shown"),
        (astray, "`Mixup` is no public name"),
        (astray, "`is_average` is no public name"),
        (astray, "`mixaug.loss.no_such` does not exist"),
        (astray, "arxiv.org/abs/1710.09412 is no link"),
        (odd, "Tensro"),
    ],
)
def test_the_reference_is_not_built_with(thing, said, tmp_path, monkeypatch):
    monkeypatch.setattr(mixaug, "__all__", [*mixaug.__all__, thing.__name__])
    monkeypatch.setattr(mixaug, thing.__name__, thing, raising=False)
    monkeypatch.setattr(thing, "__module__", "mixaug.loss")
    with pytest.raises((SystemExit, UserWarning), match=re.escape(said)):
        build(tmp_path)
    assert not list(tmp_path.iterdir())
