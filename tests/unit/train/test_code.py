"""The version of the code changes with what can change a result, and with nothing else."""

from __future__ import annotations

import ast
import re
import shutil
from functools import cache
from pathlib import Path

import pytest

from bigtransfer.train import code
from bigtransfer.train.code import closure, meaning
from fixtures.project import PROJECT

RECIPES = ("bigtransfer.train.pretrain", "bigtransfer.train.finetune")
ON_THE_WAY = {
    "bigtransfer.data.transforms": RECIPES, "bigtransfer.data.decoding": RECIPES,
    "bigtransfer.data.batches": RECIPES, "bigtransfer.data.order": RECIPES,
    "bigtransfer.data.randomness": RECIPES, "bigtransfer.data.shards": RECIPES,
    "bigtransfer.model.inference": RECIPES, "bigtransfer.model.resnet": RECIPES,
    "bigtransfer.model.convolution": RECIPES, "bigtransfer.model.triton_group_norm": RECIPES,
    "bigtransfer.train.loop": RECIPES, "bigtransfer.train.schedule": RECIPES,
    "bigtransfer.train.eager": RECIPES, "bigtransfer.train.run": RECIPES,
    "bigtransfer.train.captured": RECIPES, "bigtransfer.train.tpu": RECIPES,
    "bigtransfer.train.loss": RECIPES, "bigtransfer.train.mixup": RECIPES,
    "bigtransfer.train.optimizer": RECIPES, "bigtransfer.train.hyperrule": RECIPES[1:],
    "bigtransfer.train.grid": RECIPES[1:], "bigtransfer.train.cell": RECIPES[1:],
    "bigtransfer.metrics.accuracy": RECIPES, "bigtransfer.metrics.calibration": RECIPES[1:],
}  # fmt: skip
"""Module on the way of an image -> the recipes that it belongs to."""


class _OneConstantMore(ast.NodeTransformer):
    """Changes the first number of a module."""

    done = False

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if self.done or type(node.value) not in (int, float):
            return node
        self.done = True
        return ast.Constant(node.value + 1)


@cache
def modules_of(recipe: str) -> dict[str, Path]:
    return closure(recipe)


@pytest.mark.parametrize("module", ON_THE_WAY)
def test_a_constant_on_the_way_of_an_image_is_another_version(module: str) -> None:
    within = {recipe for recipe in RECIPES if module in modules_of(recipe)}
    assert within == set(ON_THE_WAY[module])
    text = (PROJECT / f"{module.replace('.', '/')}.py").read_text()
    changing = _OneConstantMore()
    changed = ast.unparse(changing.visit(ast.parse(text)))
    assert changing.done
    assert meaning(changed) != meaning(text)
    assert meaning(ast.unparse(ast.parse(text))) == meaning(text)


def test_what_says_and_stores_is_no_part_of_it() -> None:
    found = {name for recipe in RECIPES for name in modules_of(recipe)}
    rooms = {name.split(".")[1] for name in found if "." in name}
    assert rooms >= {"data", "model", "train", "metrics"}
    assert not rooms & {"errors", "progress", "storage", "config", "track", "command", "serve"}
    assert "bigtransfer.data.validation" not in found, "it is over before shards exist"


def test_words_of_any_module_are_no_version() -> None:
    for path in modules_of(RECIPES[1]).values():
        text = path.read_text()
        other = re.sub(r'^( *)"""(?=[^\s"])', r'\1"""Other words. ', text, flags=re.M)
        assert meaning(f"# A comment.\n{other}") == meaning(text), path


def test_a_copy_of_the_library_shows_the_change(tmp_path: Path) -> None:
    package = tmp_path / "bigtransfer"
    shutil.copytree(PROJECT / "bigtransfer", package)

    def version() -> dict[str, str]:
        return {n: meaning(p.read_text()) for n, p in closure(RECIPES[0], package).items()}

    before = version()
    path = package / "model" / "inference.py"
    path.write_text(path.read_text().replace("_MIDDLE = 127.5", "_MIDDLE = 255.0"))
    after = version()
    assert [name for name in after if after[name] != before[name]] == [
        "bigtransfer.model.inference"
    ]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ('def f(x):\n    """Do otherwise."""\n    if x:\n        raise E("no", 1) from x\n', True),
        ("def f(x):\n    if x:\n        raise E('not so')\n", True),
        ("def f(x):  # why\n\n    if x:\n        raise E\n", True),
        ("def f(x):\n    if not x:\n        raise E('no')\n", False),
        ("def f(x):\n    if x:\n        raise F('no')\n", False),
        ("def f(x):\n    if x:\n        return 'no'\n", False),
    ],
)
def test_what_is_words_and_what_is_not(other: str, same: bool) -> None:
    first = 'def f(x):\n    """Do it."""\n    if x:\n        raise E("no")\n'
    assert (meaning(first) == meaning(other)) == same


def test_the_version_names_pytorch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code.code_version.__wrapped__(RECIPES[0])
    assert re.fullmatch(r"[0-9a-f]{16}", before)
    assert code.code_version.__wrapped__(RECIPES[1]) != before
    monkeypatch.setattr(code.torch, "__version__", "9.9")
    assert code.code_version.__wrapped__(RECIPES[0]) != before
