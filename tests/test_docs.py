"""The API reference: every public name is on its page, nothing on it is broken, and the examples are right."""

import doctest
import re
import runpy
from pathlib import Path

import pytest
import torch

import mixaug
from mixaug.compare import compare

ROOT = Path(__file__).parent.parent
PUBLIC = {name: getattr(mixaug, name) for name in mixaug.__all__}
FOUND = [
    *doctest.DocTestFinder().find(compare, "compare", globs={"compare": compare}),
    *(t for n, o in PUBLIC.items() for t in doctest.DocTestFinder().find(o, n, globs={**PUBLIC, "torch": torch})),
]


def test_the_examples_give_what_they_say_and_none_is_skipped():
    for test in FOUND:  # as for a reader who has imported torch and the public names, and nothing else
        assert doctest.DocTestRunner().run(test).failed == 0, test.name
    written = sum(path.read_text().count(">>> ") for path in (ROOT / "mixaug").glob("**/*.py"))
    assert sum(len(test.examples) for test in FOUND) == written


def build(folder):
    pytest.importorskip("pdoc")
    runpy.run_path(str(ROOT / ".ci/docs"))["build"](folder)


def test_the_reference_has_every_name_with_its_arguments_and_loads_nothing(tmp_path):
    build(tmp_path)
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(f' id="{n}"' in html for n in [*PUBLIC, "Learner.mixup", "Learner.show_mixed", "MixHandler.show_batch"])
    (shown,) = re.findall(r'(?s)<section id="SaliencyMix">.*?Arguments:.*?<ul>(.*?)</ul>', html)
    names = re.findall(r"<strong>(\w+):", shown)[:3]
    assert [*names, "Probability of mixing a batch" in shown] == ["alpha", "fold", "prob", True]
    assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?!data:)', html)


def undocumented(): ...


def astray():
    """As `Mixup`, `is_average` and `mixaug.loss.no_such`; see arxiv.org/abs/1710.09412."""


def odd(x: "Tensro"):  # noqa: F821
    """Do nothing."""


SAID = ["undocumented is public and", "`Mixup` is no", "`is_average` is no", "no_such` does not", "09412 is no link"]


@pytest.mark.parametrize(("things", "said"), [((undocumented, astray), SAID), ((odd,), ["Tensro"])])
def test_the_reference_is_not_built_with_mistakes(things, said, tmp_path, monkeypatch):
    monkeypatch.setattr(mixaug, "__all__", [*mixaug.__all__, *(thing.__name__ for thing in things)])
    for thing in things:
        monkeypatch.setitem(vars(mixaug), thing.__name__, thing)
        monkeypatch.setattr(thing, "__module__", "mixaug.loss")
    with pytest.raises((SystemExit, UserWarning)) as error:
        build(tmp_path)
    assert [words for words in said if words not in str(error.value)] == list(tmp_path.iterdir()) == []
