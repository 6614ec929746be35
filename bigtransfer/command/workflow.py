"""Run the whole workflow on this machine: `dvc repro`, and before and after it what DVC lacks.

Before: params and paths are checked. After: the failing stage's own line and exit code (DVC turns
every failure into its own 255), or what was made and what to do next.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bigtransfer.command.check_params import check_params
from bigtransfer.config import Params
from bigtransfer.errors import StorageError
from bigtransfer.storage import read_json

_LAST_FAILURE = Path(".work") / "last-failure.json"
_REPORT = Path("artifacts") / "report"


def run(project: Path, targets: list[str]) -> int:
    """Run `dvc repro` in the project and return the exit code of the whole.

    Args:
        project: Folder of dvc.yaml and params.yaml.
        targets: Stages to run with what they need; all where empty.
    """
    params = check_params(project / "params.yaml")
    failure = project / _LAST_FAILURE
    failure.unlink(missing_ok=True)
    # `dvc` of the environment this runs in, whether it is activated or not.
    command = [sys.executable, "-m", "dvc", "repro", *targets]
    code = subprocess.run(command, cwd=project, env=_environment(), check=False).returncode
    if code:
        return _explain(failure, code)
    if not targets:
        _show(project, params)
    return 0


def _environment() -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}


def _explain(failure: Path, code: int) -> int:
    if not failure.is_file():
        print(f"\n`dvc repro` failed (its exit code {code}); its message is above", file=sys.stderr)
        return code if 0 < code < 255 else 1
    facts = read_json(failure)
    print(f"\n{facts['stage']}: {facts['message']}", file=sys.stderr)
    print(f"stage {facts['stage']!r} stopped with exit code {facts['exit_code']}", file=sys.stderr)
    return int(facts["exit_code"])


def _show(project: Path, params: Params) -> None:
    from bigtransfer.evaluate.table import headline_rows

    rows = read_json(project / _REPORT / "metrics.json")["rows"]
    columns = {"task": "task", "examples_per_class": "per class", "transfer": "transfer",
               "scratch": "scratch", "difference": "difference"}  # fmt: skip
    print("\nTest top-1, median ± standard deviation over seeds\n")
    table = [columns, *headline_rows(rows)]
    widths = {key: max(len(row[key]) for row in table) for key in columns}
    for row in table:
        cells = [
            row[key].ljust(w) if key == "task" else row[key].rjust(w) for key, w in widths.items()
        ]
        print("  " + "   ".join(cells).rstrip())
    print("\nMade")
    print(
        f"  {'artifacts/pretrain/checkpoint':<34} upstream network, {params.pretrain.architecture}"
    )
    for task in params.tasks:
        print(f"  {_registration(project, task)}")
    print(f"  {_REPORT / 'index.html'!s:<34} the report")
    print("\nNext")
    print(f"  {_opener()} {_REPORT / 'index.html'!s:<25} look at it")
    print(f"  {'make ui':<34} runs, curves and models in MLflow, http://localhost:5000")
    print(
        f"  {'$EDITOR params.yaml':<34} name your own folder under `datasets:` and `tasks:`, then"
    )
    print(f'  {"":<34} `make run` again (README, "Your own photos")')


def _registration(project: Path, task: str) -> str:
    path = project / "artifacts" / "register" / task / "registration.json"
    try:
        facts = read_json(path)
    except StorageError:
        return f"(no model registered for task {task!r})"
    name = f"models:/{facts['name']}@{facts['alias']}"
    return f"{name:<34} registered model, version {facts['version']}"


def _opener() -> str:
    return "open" if sys.platform == "darwin" else "xdg-open"
