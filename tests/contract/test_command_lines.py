"""A component is its command line: it answers fast, and dvc.yaml and KFP say the same one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bigtransfer import config
from components.interface import parser
from fixtures.project import PROJECT, environment
from fixtures.stages import declaration, dvc_lines

COMPONENTS = ("materialize", "fetch", "fetch_weights", "validate", "audit", "shard", "pretrain",
              "finetune", "evaluate", "register", "summarize", "predict",
              "study_cell", "study_table", "study_check")  # fmt: skip
NO_COMPONENTS = ("__init__", "interface", "executor", "image_requirements", "launch")
HEAVY = {"torch", "mlflow", "great_expectations", "pandas", "pyarrow", "matplotlib", "numpy"}


def test_every_module_of_components_is_covered() -> None:
    found = {p.stem for p in (PROJECT / "components").glob("*.py")} - set(NO_COMPONENTS)
    assert found == set(COMPONENTS)


@pytest.mark.parametrize("name", COMPONENTS)
def test_help_explains_every_flag_and_imports_nothing_heavy(name: str) -> None:
    probe = (
        "import sys, runpy\n"
        f"sys.argv = ['components.{name}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('components.{name}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "print('HEAVY', sorted(m for m in sys.modules if m in " + repr(HEAVY) + "))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe], cwd=PROJECT, env=environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert result.stdout.rstrip().endswith("HEAVY []")
    described = declaration(name)
    flags = (*described.reads, *described.writes, *described.options)
    for flag in (*flags, "params", "params-json", "section"):
        assert re.search(rf"--{flag} [A-Z]+\s+\S", result.stdout), flag
    for flag in described.reads_each:
        assert re.search(rf"--{flag.replace('_', '-')} NAME PATH\s+\S", result.stdout), flag


@pytest.mark.parametrize("name", COMPONENTS)
def test_run_takes_exactly_the_declared_paths(name: str) -> None:
    tree = ast.parse((PROJECT / "components" / f"{name}.py").read_text())
    (run,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "run"]
    declared = declaration(name)
    assert [a.arg for a in run.args.args] == ["stage", "params"]
    flags = [*declared.reads, *declared.reads_each, *declared.writes, *declared.options]
    assert [a.arg for a in run.args.kwonlyargs] == flags
    assert issubclass(declared.params_class, config.Section)


@pytest.mark.parametrize(("name", "line"), dvc_lines().items())
def test_dvc_line_parses_by_the_declaration(name: str, line: list[str]) -> None:
    head, *rest = line[line.index("python") :]
    assert [head, *rest[:1]] == ["python", "-m"]
    component = rest[1].removeprefix("components.")
    assert component == name.partition("@")[0]
    arguments = parser(declaration(component)).parse_args(rest[2:])
    assert arguments.params == Path("params.yaml")
    section = config.load(PROJECT / "params.yaml").section(arguments.section)
    assert isinstance(section, declaration(component).params_class)
    if "@" in name:
        assert arguments.section.partition(".")[2] in ("", name.partition("@")[2])


def test_unknown_and_shortened_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["--param", "params.yaml"], ["--params", "x", "--params-json", "{}"]):
        with pytest.raises(SystemExit) as end:
            parser(declaration("pretrain")).parse_args(line)
        assert end.value.code == 2
    assert "not allowed with argument --params" in capsys.readouterr().err
