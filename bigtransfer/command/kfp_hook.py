"""Make the script `kfp` call our entrance, whoever wrote that script (docs/decisions/0028).

`bigtransfer_kfp.pth` in site-packages calls `install` as the interpreter starts, before anything
else is there: this module needs the standard library alone, and must stay quick.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_UPSTREAM = "kfp.cli.__main__"
"""Its `main` is what the script of the distribution kfp calls."""
_SCRIPTS = ("kfp", "kfp.exe", "kfp-script.py")
_TAKE_A_VALUE = ("-X", "-W", "--check-hash-based-pycs")


def install() -> None:
    """Wait for upstream's entrance, if this process is the script `kfp`."""
    if is_script(sys.orig_argv):
        sys.meta_path.insert(0, _Finder())


def is_script(line: Sequence[str]) -> bool:
    """Return whether an interpreter's command line runs a script named `kfp`."""
    words = iter(line[1:])
    for word in words:
        if not word.startswith("-"):
            return os.path.basename(word.replace("\\", "/")).lower() in _SCRIPTS
        if word in _TAKE_A_VALUE:
            next(words, None)
        elif not word.startswith(("-X", "-W", "--")) and ("c" in word or "m" in word):
            return False  # -c CODE, -m MODULE, and joined: -Im MODULE
    return False


class _Finder:
    """Finds the module as all others do, once, and has our entrance put into it."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name != _UPSTREAM:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_replace(module: ModuleType) -> None:
                execute(module)
                _replace(module)

            spec.loader.exec_module = execute_and_replace  # type: ignore[method-assign]
        return spec


def _replace(module: Any) -> None:
    upstream = module.main

    def main() -> None:
        module.main = upstream  # for the words that are not ours
        from bigtransfer.command.kfp import main as ours

        ours()

    module.main = main
