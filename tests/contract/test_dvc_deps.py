"""Every file that can change a stage's output is among its `deps`, so no cached output is stale."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fixtures.project import PROJECT
from fixtures.stages import stages

STAGES = stages()
# These change what is said, not what is written: errors, progress, MLflow's copy of the metrics.
# The stage `register` writes what MLflow answers, so there `track/` counts.
SAYS_ONLY = {
    "components/executor.py",
    "bigtransfer/kubeflow/image_tag.py",  # this and the next: of tasks on a cluster alone
    "bigtransfer/kubeflow/refusals.py",
    "bigtransfer/arguments.py",
    "bigtransfer/errors.py",
    "bigtransfer/extras.py",
    "bigtransfer/progress.py",
    "bigtransfer/retry.py",
    "bigtransfer/__init__.py",
    "bigtransfer/version.py",
}


def imported_files(start: Path) -> set[str]:
    """Return project files that a file imports, directly or not, lazily or not."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(PROJECT).as_posix()
        if name in found:
            continue
        found.add(name)
        for module in modules_of(path):
            stem = PROJECT / module.replace(".", "/")
            waiting += [p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()]
    return found


def modules_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    modules: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {m for m in modules if m.split(".")[0] in ("bigtransfer", "components")}


def templates(files: set[str]) -> set[str]:
    return {
        page.relative_to(PROJECT).as_posix()
        for page in (PROJECT / "bigtransfer").rglob("*.html")
        if page.with_suffix(".py").relative_to(PROJECT).as_posix() in files
    }


@pytest.mark.parametrize("name", STAGES)
def test_deps_cover_what_the_stage_imports(name: str) -> None:
    component = name.partition("@")[0]
    files = imported_files(PROJECT / "components" / f"{component}.py")
    files |= templates(files)
    needed = {
        file
        for file in files - SAYS_ONLY
        if not file.endswith("__init__.py")
        and (component == "register" or not file.startswith("bigtransfer/track/"))
    }
    deps = [str(dep.def_path) for dep in STAGES[name].deps if not hasattr(dep, "params")]
    missing = {f for f in needed if not any(f == d or f.startswith(f"{d}/") for d in deps)}
    assert not missing, f"add to the deps of {name!r} in dvc.yaml: {sorted(missing)}"


@pytest.mark.parametrize("name", STAGES)
def test_code_deps_exist_and_are_used(name: str) -> None:
    component = name.partition("@")[0]
    files = imported_files(PROJECT / "components" / f"{component}.py")
    files |= templates(files)
    for dep in STAGES[name].deps:
        path = str(dep.def_path)
        if path.split("/")[0] in ("bigtransfer", "components"):
            assert (PROJECT / path).exists()
            used = any(file == path or file.startswith(f"{path}/") for file in files)
            assert used, f"{name!r} depends on {path}, which it does not import"


def test_every_output_is_ignored_by_the_one_gitignore() -> None:
    import subprocess

    outs = [str(out.def_path) for stage in STAGES.values() for out in stage.outs]
    listed = subprocess.run(
        ["git", "check-ignore", "--no-index", *outs], cwd=PROJECT, capture_output=True, text=True,
        check=False,
    ).stdout.split()  # fmt: skip
    assert sorted(listed) == sorted(outs)
    nested = [p for p in PROJECT.glob("*/.gitignore") if p.parent.name not in (".dvc", ".venv")]
    assert not [p for p in nested if not p.parent.name.startswith(".")]
