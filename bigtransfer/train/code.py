"""Which code decides what a training becomes: a digest over what can change a pixel or a weight.

The modules are found by their imports, from the recipe down, so that none is forgotten when a line
moves. What they say is read as a syntax tree without docstrings and messages: a comment, a
docstring or the words of an error change nothing.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import torch

from bigtransfer.storage import sha256_json

_PACKAGE = Path(__file__).parents[1]
_NAME = _PACKAGE.name
_WITHOUT_EFFECT = ("errors", "progress", "retry", "storage", "config", "track")
"""Rooms whose code changes no result: the values of `config` are in the fingerprint themselves."""


@cache
def code_version(recipe: str) -> str:
    """Return 16 hex digits over the code of a recipe and over PyTorch's version.

    Args:
        recipe: Module that trains, e.g. `bigtransfer.train.pretrain`.
    """
    files = closure(recipe)
    trees = {name: meaning(path.read_text("utf-8")) for name, path in sorted(files.items())}
    return sha256_json({"code": trees, "torch": torch.__version__})[:16]


def closure(module: str, package: Path = _PACKAGE) -> dict[str, Path]:
    """Return the modules of our package that a module imports, directly or not, lazily or not.

    Without those whose code has no effect on a result.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file_of(name, package)
        if name in found or path is None or _room(name) in _WITHOUT_EFFECT:
            continue
        found[name] = path
        waiting += _imports(path)
    return found


def meaning(source: str) -> str:
    """Return what a module does, as text: its syntax tree without docstrings and messages."""
    tree = _WithoutWords().visit(ast.parse(source))
    return ast.dump(tree, include_attributes=False)


def _room(module: str) -> str:
    return f"{module}.".split(".")[1]


def _file_of(module: str, package: Path) -> Path | None:
    stem = package.parent / module.replace(".", "/")
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module for module in modules if module.split(".")[0] == _NAME}


class _WithoutWords(ast.NodeTransformer):
    """Takes out what is said to people: strings that stand alone, and what an error is given."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=kind, cause=None)
