"""What the project says of itself: the README's commands, the imports' one direction, the package's public names."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from common import BS, images, trained

import mixaug

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def python(code, *options):
    """Return what Python prints for `code`."""
    run = [sys.executable, *options, "-c", code]
    return subprocess.run(run, capture_output=True, text=True, cwd=ROOT, timeout=300, check=True).stdout


def test_the_readme_has_two_commands_of_one_line_and_ci_runs_the_second():
    run, test = re.findall(r"```sh\n(.+)\n```", README.split("## Install")[1].split("\n## ")[0])
    assert (run.endswith("mixaug compare"), test.endswith("pytest")) == (True, True)
    assert test in (ROOT / ".ci/run").read_text().splitlines()


CORE = ("torch_private", "nests", "draw", "mix", "pairing", "sources", "graph", "trial", "exchange", "layers")
ROOMS = [*CORE, "options", "loss", "targets", "batch", "verify", "lifecycle", "passes", "drawing", "handler",
         "methods/average", "methods/cut", "methods/cut_variants", "methods/output", "methods/hidden",
         "methods/patch_up", "methods/one_of", "metrics", "learner", "show",
         *(f"compare/{name}" for name in ("measures", "statistics", "fingerprint", "cache", "methods", "training",
                                          "progress", "plot", "report", "result", "run", "learners", "folders",
                                          "tables", "images", "command"))]  # fmt: skip


def test_the_core_may_import_nothing_but_torch():
    command = f"{sys.executable} -m ruff check --output-format=concise --stdin-filename mixaug/NAME.py -"
    for name, module in itertools.product(CORE, ("json", "fastai.learner", "fastcore.basics")):
        text = f"import {module}\n" + (ROOT / f"mixaug/{name}.py").read_text()
        run = command.replace("NAME", name).split()
        found = subprocess.run(run, input=text, capture_output=True, text=True, cwd=ROOT, timeout=60).stdout
        assert ("F401" in found, "TID251" in found) == (True, module != "json"), (name, module)


@pytest.mark.parametrize("at", range(len(ROOMS)), ids=ROOMS)
def test_imports_go_one_way(at):
    folder, _, _ = ROOMS[at].rpartition("/")
    tree = ast.parse((ROOT / f"mixaug/{ROOMS[at]}.py").read_text())
    typing = {id(n) for block in ast.walk(tree) if isinstance(block, ast.If) for n in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in typing:
            room = f"{folder}/{node.module}" if folder and node.level == 1 else str(node.module).replace(".", "/")
            assert room in ROOMS[:at], f"{ROOMS[at]} imports {room}"


def test_every_file_is_a_room_of_at_most_300_lines():
    files = {path.relative_to(ROOT / "mixaug").with_suffix("").as_posix(): path for path in ROOT.glob("mixaug/**/*.py")}
    assert set(files) == {*ROOMS, "__init__", "__main__", "methods/__init__", "compare/__init__"}
    most = {name: 200 if name.startswith("compare/") else 300 for name in files}
    assert not [name for name, path in files.items() if len(path.read_text().splitlines()) > most[name]]


def test_private_names_are_in_one_place_and_few():
    """Attributes with an underscore that the package does not define itself are somebody else's."""
    used, defined = {}, set()
    for path in ROOT.glob("mixaug/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.keyword):
                defined.add(node.arg)
            elif isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
                if isinstance(node.ctx, ast.Store):
                    defined.add(node.attr)
                else:
                    used.setdefault(node.attr, set()).add(path.stem)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                assert not any(re.match("_[^_]", part) for part in (getattr(node, "module", None) or "").split("."))
    assert {name: where for name, where in used.items() if name not in defined} == {"_C": {"torch_private"}}
    text = (ROOT / "mixaug/torch_private.py").read_text()
    assert set(re.findall(r"torch\._\w+(?:\.\w+)?|\"(?:_\w+|\w*Disable\w*)\"", text)) == {
        "torch._C", '"DisableTorchFunctionSubclass"', '"_orig_mod"', "torch._dynamo", '"_compiled_call_impl"',
        '"_forward_hooks"', '"_forward_pre_hooks"',
    }  # fmt: skip


WITHOUT = """
import sys, torch, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {tests!r})
import fastai.basics
kept = torch._C.DisableTorchFunctionSubclass
del torch._C.DisableTorchFunctionSubclass  # where the package looks for it; torch itself needs it
import mixaug
torch._C.DisableTorchFunctionSubclass = kept
assert mixaug.torch_private.no_subclass is not kept
mixaug.torch_private.find_spec = lambda name: None  # as if torch._dynamo had another name
mixaug.layers.unwrapped = mixaug.methods.hidden.unwrapped = lambda model: model  # as if _orig_mod had
from common import EVERY, learner, on
from reference import Oracle
from fastai.torch_core import TensorImage, TensorCategory
for name, method in EVERY.items():
    if name in ("CMixup", "clean"):
        continue
    learn = learner(method(1), cbs=[Oracle()])
    typed = lambda l: vars(l).update(xb=(TensorImage(l.x),), yb=(TensorCategory(l.y),))
    learn.add_cb(on("before_batch", typed, -1))
    learn.fit(1)
    assert learn.oracle.batches == 6, name
learn = learner(mixaug.ManifoldMixup(input_mixup=False))
learn.model = torch.compile(learn.model, backend="eager")
learn.fit(1)
assert list(learn.manifold_mixup_cb.hidden_layers) == ["_orig_mod.0", "_orig_mod.2"]
"""


def test_without_the_private_names_all_methods_train_right():
    python(WITHOUT.format(tests=str(ROOT / "tests")))


def test_the_top_level_holds_nothing_else():
    listing = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, timeout=60).stdout
    top = {line.split("/")[0] for line in listing.splitlines() if not line.startswith(".")}
    assert top <= {"pyproject.toml", "mixaug", "tests", "nbs", "README.md", "LICENSE"}


def test_every_public_name_is_documented_and_in_the_changelog():
    changelog = (ROOT / ".github/CHANGELOG.md").read_text()
    for name in mixaug.__all__:
        assert (bool(getattr(mixaug, name).__doc__), f"`{name}`" in changelog) == (True, True), name


def test_importing_the_package_brings_no_pictures_and_no_experiments():
    code = "import sys, fastai.basics; a = set(sys.modules); import mixaug; print(*sorted(set(sys.modules) - a))"
    new = python(code, "-W", "ignore").split()
    assert [m for m in new if not m.startswith(("mixaug", "torch"))] == []


def test_the_readmes_own_method_mixes():
    (example,) = [code for code in re.findall(r"```python\n(.+?)```", README, re.S) if "class Stripes" in code]
    names = {"mx": mixaug, "torch": torch}
    exec(example, names)
    x = images()
    for row in trained(names["Stripes"](), x).spy.batches:
        original = x[row["iter"] * BS : (row["iter"] + 1) * BS]
        assert torch.equal(row["x"][0][..., ::2], original[..., ::2])
        assert torch.equal(row["x"][0][..., 1::2], original[row["mix"].partner][..., 1::2])
        assert (row["lam"] == 0.5).all()


WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
WRITES = {("docs", "publish"): {"pages", "id-token"}, ("release", "publish"): {"id-token"}}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_do_little_with_pinned_actions_and_ends(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    for job, what in WORKFLOWS[name]["jobs"].items():
        assert set(what.get("permissions", ())) == WRITES.get((name, job), set())
        assert what["timeout-minutes"] <= 120
        for step in what["steps"]:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", step.get("uses", "a/b@v1.0.0"))
            assert all((ROOT / command).exists() for command in re.findall(r"\.ci/\w+", step.get("run", "")))
