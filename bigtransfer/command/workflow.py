"""Run the whole workflow on this machine: `dvc repro`, and before and after it what DVC lacks.

Before: params and paths are checked. After: the failing stage's own line and exit code (DVC turns
every failure into its own 255), or what was made and what to do next.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bigtransfer.artifacts.registration import Registration
from bigtransfer.artifacts.report import TaskReport
from bigtransfer.command import stages
from bigtransfer.command.dvc_lock import make_way
from bigtransfer.command.params_file import check_params
from bigtransfer.command.stages import Told
from bigtransfer.config import Params
from bigtransfer.errors import LAST_FAILURE
from bigtransfer.extras import require
from bigtransfer.storage import read_json
from bigtransfer.track.address import forgot_everything

_REPORT = Path("artifacts") / "report"
_EVALUATIONS = Path("artifacts") / "evaluate"
_REGISTRATIONS = Path("artifacts") / "register"


def repro(project: Path, targets: list[str], *, verbose: bool = False) -> int:
    """Run `dvc repro` in the project and return the exit code of the whole.

    Args:
        project: Folder of dvc.yaml and params.yaml.
        targets: Stages to run with what they need; all where empty.
        verbose: Show all that DVC and the stages say; else a line for each stage, and all goes to
            a log in .work/log.

    Raises:
        ConfigError: If what it needs is not installed, or params.yaml is wrong.
        LockError: If another run works in this project.
    """
    for package in ("dvc", "mlflow", "sklearn"):
        require(package, "the workflow")
    params = check_params(project / "params.yaml")
    failure = project / LAST_FAILURE
    make_way(project)
    failure.unlink(missing_ok=True)
    if forgot_everything(project):
        # Without its database MLflow has none of these models; DVC cannot know, so register anew.
        shutil.rmtree(project / _REGISTRATIONS, ignore_errors=True)
    # `dvc` of the environment this runs in, whether it is activated or not.
    command = [sys.executable, "-m", "dvc", "repro", *targets]
    told = None
    if verbose:
        code = subprocess.run(command, cwd=project, env=_environment(), check=False).returncode
    else:
        told = stages.repro(project, command, _environment(), whole=not targets)
        code = told.code
    if code:
        return _explain(failure, code, told)
    if not targets:
        _show(project, params)
    return 0


def _environment() -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}


def _explain(failure: Path, code: int, told: Told | None) -> int:
    facts = read_json(failure) if failure.is_file() else None
    if told is not None:
        _repeat(told, str(facts["message"]) if facts else "")
    if facts is None and told is not None and told.stage:
        print(f"stage {told.stage!r} failed", file=sys.stderr)
        return 1
    if facts is None:
        print(f"\n`dvc repro` failed (its exit code {code}); its message is above", file=sys.stderr)
        return code if 0 < code < 255 else 1
    print(f"\n{facts['stage']}: {facts['message']}", file=sys.stderr)
    print(f"stage {facts['stage']!r} stopped with exit code {facts['exit_code']}", file=sys.stderr)
    return int(facts["exit_code"])


def _repeat(told: Told, message: str) -> None:
    """Print what only the log has: the last lines of the stage, or what DVC itself complains of."""
    known = message.splitlines()
    lines = [line for line in told.last if not any(one in line for one in known if one)]
    if not message and not lines:
        lines = told.errors
    for line in lines:
        print(line, file=sys.stderr)
    print(f"\nall that was said: {told.log}", file=sys.stderr)


def _show(project: Path, params: Params) -> None:
    from bigtransfer.report.table import headline_rows, metric_names

    reports = [TaskReport.read(project / _EVALUATIONS / task / "report") for task in params.tasks]
    rows = [row for report in reports for row in report.rows]
    print(f"\nTest {metric_names(rows)}, median ± standard deviation over seeds\n")
    print(_table(headline_rows(rows)))
    print("\nMade")
    _line("artifacts/pretrain/checkpoint", f"upstream network, {params.pretrain.architecture}")
    for task in params.tasks:
        _line(*_registration(project, task))
    _line(f"{_REPORT}/index.html", "the report")
    print("\nNext")
    _line(f"{_opener()} {_REPORT}/index.html", "look at it")
    _line("make ui", "runs, curves and models in MLflow")
    _line("$EDITOR params.yaml", "add your own folder of photos, then `make run` again")
    _line("", '(README, section "Your own photos")')


def _line(what: str, why: str) -> None:
    print(f"  {what:<40} {why}".rstrip())


def _table(rows: list[dict[str, str]]) -> str:
    titles = {
        "task": "task",
        "examples_per_class": "per class",
        "transfer": "transfer",
        "scratch": "scratch",
        "difference": "difference",
        "balanced": "balanced",
        "macro_f1": "macro-F1",
    }
    table = [titles, *rows]
    widths = {key: max(len(row[key]) for row in table) for key in titles}
    lines = []
    for row in table:
        first, *others = (row[key] for key in titles)
        cells = [
            cell.rjust(width) for cell, width in zip(others, list(widths.values())[1:], strict=True)
        ]
        lines.append("  " + "   ".join([first.ljust(widths["task"]), *cells]))
    return "\n".join(lines)


def _registration(project: Path, task: str) -> tuple[str, str]:
    folder = project / _REGISTRATIONS / task
    if not (folder / Registration.FILE).is_file():
        return f"(task {task})", "no model registered"
    found = Registration.read(folder)
    return found.address, f"model version {found.version} in MLflow"


def _opener() -> str:
    return "open" if sys.platform == "darwin" else "xdg-open"
