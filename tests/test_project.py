"""What the project says of itself: the README's commands, the imports' one direction, the package's public names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from common import BS, images, learner

import mixaug

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands():
    """The two one-line commands of the README's section on installing."""
    section = (ROOT / "README.md").read_text().split("## Install")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.+)\n```", section)


def test_the_readme_has_two_commands_of_one_line():
    run, test = commands()
    assert run.endswith("mixaug compare")
    assert test.endswith("pytest")


def test_ci_runs_the_readmes_test_command_to_the_letter():
    assert commands()[1] in (ROOT / ".ci/run").read_text().splitlines()


def ruff(name, text):
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--output-format=concise",
        "--stdin-filename",
        f"mixaug/{name}.py",
    ]
    return subprocess.run([*command, "-"], input=text, capture_output=True, text=True, cwd=ROOT, timeout=60).stdout


def test_masks_and_mixing_may_import_nothing_but_torch():
    for name in ("masks", "fast", "mixing"):
        text = (ROOT / f"mixaug/{name}.py").read_text()
        assert "TID251" not in ruff(name, text)
        for module in ("fastai.learner", "fastcore.basics", "mixaug.handlers"):
            assert "TID251" in ruff(name, f"import {module}\n{text}")


def test_imports_go_one_way():
    order = [
        "fast",
        "masks",
        "mixing",
        "loss",
        "handlers",
        "manifold",
        "combine",
        "metrics",
        "learner",
        "show",
        "__init__",
    ]
    for at, name in enumerate(order):
        path = ROOT / f"mixaug/{name}.py"
        imported = re.findall(r"^ *from \.(\w*) import (\w+)", path.read_text(), re.M) if path.exists() else []
        assert {module or first for module, first in imported} <= set(order[:at]), name


def test_every_public_name_is_there_and_documented():
    for name in mixaug.__all__:
        assert getattr(mixaug, name).__doc__, name


def test_importing_the_package_brings_no_pictures_and_no_experiments():
    code = "import sys, fastai.basics; a = set(sys.modules); import mixaug; print(*sorted(set(sys.modules) - a))"
    run = [sys.executable, "-W", "ignore", "-c", code]
    new = subprocess.run(run, capture_output=True, text=True, timeout=120, check=True).stdout.split()
    assert [m for m in new if not m.startswith(("mixaug", "torch"))] == []


def test_the_top_level_holds_nothing_else():
    listing = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, timeout=60).stdout
    top = {line.split("/")[0] for line in listing.splitlines()}
    allowed = {"pyproject.toml", "mixaug", "tests", "nbs", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= allowed


def test_the_readmes_own_method_mixes():
    (example,) = [code for code in re.findall(r"```python\n(.+?)```", README, re.S) if "class Stripes" in code]
    names = {**vars(mixaug), "torch": torch}
    exec(example, names)
    x = images()
    learn = learner(names["Stripes"](), x)
    learn.fit(1, 0.01)
    for row in learn.spy.batches:
        own = x[row["iter"] * BS : (row["iter"] + 1) * BS]
        assert torch.equal(row["x"][0][..., ::2], own[..., ::2])
        assert torch.equal(row["x"][0][..., 1::2], own[row["mix"].partner][..., 1::2])
        assert (row["lam"] == 0.5).all()


def test_the_readme_names_every_method():
    methods = [name for name in mixaug.__all__ if isinstance(getattr(mixaug, name), type)]
    methods = [name for name in methods if issubclass(getattr(mixaug, name), mixaug.MixHandler)]
    table = [line.split("|")[1].strip(" `") for line in README.splitlines() if line.startswith("| `")]
    assert set(methods) - {"MixHandler"} <= set(table)


# What GitHub reads

WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
FORMS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
WRITES = {("docs", "publish"): {"pages", "id-token"}, ("release", "publish"): {"id-token"}}


def steps(workflow):
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_do_little_with_pinned_actions_and_ends(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    for job, what in WORKFLOWS[name]["jobs"].items():
        assert set(what.get("permissions", ())) == WRITES.get((name, job), set())
        assert what["timeout-minutes"] <= 120
    for step in steps(name):
        assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", step.get("uses", "a/b@v1"))
        for command in re.findall(r"\.ci/\w+", step.get("run", "")):
            assert (ROOT / command).exists()


def test_a_release_is_what_passed_under_the_tag_of_its_version():
    assert WORKFLOWS["release"][True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as a bool
    assert WORKFLOWS["release"]["jobs"]["publish"]["needs"] == "build"
    runs = [step["run"] for step in steps("release") if "run" in step]
    assert {"python -m build", "twine check --strict dist/*", "bash .ci/run"} <= set(runs)
    (check,) = [run for run in runs if "GITHUB_REF_NAME" in run]
    assert check == 'test -f "dist/mixaug-${GITHUB_REF_NAME#v}.tar.gz" && ! grep unreleased .github/CHANGELOG.md'


@pytest.mark.parametrize("name", set(FORMS) - {"config"})
def test_an_issue_form_is_one_that_github_takes(name):
    assert {"name", "description", "body"} <= set(FORMS[name])
    ids = [field["id"] for field in FORMS[name]["body"]]
    assert len(set(ids)) == len(ids) > 0
    for field in FORMS[name]["body"]:
        assert field["type"] in {"input", "textarea", "checkboxes", "dropdown"}
        assert field["attributes"]["label"]
        assert all(option["label"] for option in field["attributes"].get("options", ()))
    assert any(field.get("validations", {}).get("required") for field in FORMS[name]["body"])


def test_changelog_and_citation_are_of_this_version():
    changelog = (ROOT / ".github/CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\] - ", changelog, re.M)[0] == mixaug.__version__
    citation = yaml.safe_load((ROOT / ".github/CITATION.cff").read_text())
    assert {"message", "title", "authors"} <= set(citation)
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", mixaug.__version__)


def test_the_changelog_names_all_that_is_public():
    changelog = (ROOT / ".github/CHANGELOG.md").read_text()
    assert [name for name in mixaug.__all__ if f"`{name}`" not in changelog] == []
