"""The pages of docs/reference say what params and parsers say today."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from bigtransfer import config
from bigtransfer.command.__main__ import COMMANDS
from components.interface import parser
from fixtures.project import PROJECT, environment
from fixtures.stages import declaration

FOLDER = PROJECT / "docs" / "reference"
MEASURED = "gpu.md"
"""What a machine said once; no script here can write it anew."""


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """Return what the script that writes the pages defines, without its being run."""
    return runpy.run_path(str(FOLDER / "generate.py"))


@pytest.fixture(scope="module")
def texts(made: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = made["pages"]()
    return found


def test_the_pages_are_current(texts: dict[str, str]) -> None:
    written = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.md")}
    written.pop(MEASURED)
    assert written == texts, "`python docs/reference/generate.py` writes them anew"


def test_a_stale_page_is_named(
    made: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = made["main"]
    monkeypatch.setitem(main.__globals__, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    (tmp_path / "params.md").write_text("of yesterday")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "docs/reference/params.md is stale" in capsys.readouterr().out
    assert (tmp_path / "params.md").read_text() == "of yesterday"


def test_every_key_has_a_row(texts: dict[str, str]) -> None:
    models: list[type[BaseModel]] = [
        config.MaterializeParams, config.DatasetRules, config.PretrainParams,
        config.FinetuneParams, config.EvaluateParams, config.RegisterParams, config.ClusterParams,
    ]  # fmt: skip
    for model in models:
        for key in model.model_fields:
            assert f"\n| `{key}` | " in texts["params.md"], f"{model.__name__}.{key}"


def test_every_command_and_component_has_a_section(texts: dict[str, str]) -> None:
    for name in COMMANDS:
        assert f"\n## bigtransfer {name}\n" in texts["commands.md"]
    names = set(re.findall(r"^## (\w+)$", texts["components.md"], re.M))
    files = (PROJECT / "components").glob("*.py")
    found = {path.stem for path in files if "\nCOMPONENT = " in path.read_text()}
    assert names == found
    for name in names:
        for action in parser(declaration(name))._actions:
            assert f"`{action.option_strings[-1]}`" in texts["components.md"] or "-h" in (
                action.option_strings
            )


def test_nothing_in_them_depends_on_the_terminal() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "generate.py"), "--check"], cwd=PROJECT.parent,
        env={**environment(), "COLUMNS": "40", "LANG": "C"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
