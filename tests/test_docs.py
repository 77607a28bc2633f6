"""The site: every public name and every page is there, and the examples are right."""

import doctest
import re
from pathlib import Path

import torch
from fastai.learner import Learner

import mixaug
import mixaug.compare
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


def test_the_page_of_the_api_has_every_public_name():
    page = (ROOT / "nbs/api.md").read_text()
    shown = re.findall(r"^\.\. auto(?:class|function|method):: ([\w.]+)$", page, re.M)
    modules = "mixaug.learner", "mixaug.show"
    ours = [name for name, f in vars(Learner).items() if getattr(f, "__module__", "") in modules and name[0] != "_"]
    learner = {f"Learner.{name}" for name in ours}
    compared = set(mixaug.compare.__all__)
    assert set(shown) == {*mixaug.__all__, *learner, *compared, "MixHandler.show_batch"}
    assert len(shown) == len(set(shown))


def test_every_page_is_in_the_contents():
    contents = re.findall(r"^[\w/]+$", (ROOT / "nbs/index.md").read_text(), re.M)
    files = (path.relative_to(ROOT / "nbs") for kind in ("md", "ipynb") for path in ROOT.glob(f"nbs/**/*.{kind}"))
    pages = {path.with_suffix("").as_posix() for path in files}
    assert set(contents) == pages - {"index"}
