"""Which run of the whole workflow a stage belongs to, and from which commit it comes."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from bigtransfer.storage import sha256_file
from bigtransfer.storage.home import experiment_name

_ALL, _BUT_RECORD = ":/", ":(exclude)dvc.lock"
"""All of the repository, of which the project may be a folder; and what is left out of it."""
_ATTEMPT = "KFP_RETRY_INDEX"
"""Set by KFP itself in every task."""
_IMAGE = "BIGTRANSFER_IMAGE"
"""Set in every task by `pipelines/placement.py`."""
_ABOVE = "BIGTRANSFER_CELL"
"""Set by a task of KFP that is a cell of a study, in the stages that it runs."""
_CELLS = "components.study_cell"
_CELL = re.compile(r".+-[0-9a-f]{12}")
"""A cell's name, as `study.cells` gives it."""
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish"}


@dataclass(frozen=True)
class Origin:
    """The process that runs the workflow. `key` is equal for all stages of one run of it."""

    engine: str
    """`dvc`, `kfp` or `by hand`."""
    key: str
    pid: int
    started: float
    """Of that process, seconds since the epoch; with the pid it names a process for good."""
    title: str = ""
    """Of the KFP run, as people see it; empty: not known."""
    url: str = ""
    """Where KFP is."""
    resubmission_of: str = ""
    """The KFP run that this one starts again."""
    attempt: str = ""
    """Of this task, counted by KFP from 0."""
    cell: str = ""
    """Of a study: `<study>-<digest>`; all that is run for it stands in one run of MLflow."""
    above: str = ""
    """The task of KFP that runs this stage among others, which are shown below it."""


def find_origin() -> Origin:
    """Return the nearest DVC process above this one, the KFP run, or this process itself."""
    own = psutil.Process()
    if run_id := _kfp_run_id():
        return Origin(
            "kfp",
            f"kfp-{run_id}",
            own.pid,
            own.create_time(),
            title=os.environ.get("BIGTRANSFER_KFP_RUN", ""),
            url=os.environ.get("BIGTRANSFER_KFP_URL", ""),
            resubmission_of=os.environ.get("BIGTRANSFER_KFP_RESUBMITTED", ""),
            attempt=os.environ.get(_ATTEMPT, ""),
            above=os.environ.get(_ABOVE, ""),
        )
    for parent in own.parents():
        try:
            if _is_dvc(parent):
                return replace(_from_process("dvc", parent), cell=_cell())
        except psutil.Error:
            continue
    if above := os.environ.get(_ABOVE, ""):  # a task of KFP on this machine, which has no run id
        task = next((one for one in own.parents() if _is_cell(one)), own)
        return replace(_from_process("by hand", task), above=above)
    return _from_process("by hand", own)


def _is_cell(process: psutil.Process) -> bool:
    try:
        return _CELLS in process.cmdline()
    except psutil.Error:
        return False


def _cell() -> str:
    """Return the cell of a study that runs here; empty: none."""
    name = experiment_name(Path.cwd())
    return name if _CELL.fullmatch(name) else ""


def cannot_tell_its_run() -> bool:
    """Say whether this is a task of KFP whose pod lacks the label that names the KFP run."""
    return not _kfp_run_id() and ("KFP_RUN_ID" in os.environ or _ATTEMPT in os.environ)


def is_alive(pid: int, started: float) -> bool:
    """Say whether the process with this pid and start time still runs."""
    try:
        process = psutil.Process(pid)
        running = process.status() != psutil.STATUS_ZOMBIE
        return running and abs(process.create_time() - started) < 1
    except psutil.Error:
        return False


def git_commit(project: Path) -> str:
    """Return the commit of the working tree, with `+changes` if it differs; empty without Git.

    `dvc.lock` does not count: the very run that asks rewrites it. It is a record of what was made,
    and makes nothing itself.
    """
    try:
        commit = _git(project, "rev-parse", "HEAD")
        changes = _git(project, "status", "--porcelain", "-uno", "--", _ALL, _BUT_RECORD)
        return commit + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _kfp_run_id() -> str:
    return os.environ.get("KFP_RUN_ID", "").strip()


def _git(project: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=project, capture_output=True, text=True, timeout=20, check=True
    )
    return result.stdout.strip()


def _from_process(engine: str, process: psutil.Process) -> Origin:
    started = process.create_time()
    return Origin(
        engine, f"{engine.replace(' ', '-')}-{process.pid}-{started:.0f}", process.pid, started
    )


def _is_dvc(process: psutil.Process) -> bool:
    if process.name() in _SHELLS:
        return False
    names = [Path(argument).name for argument in process.cmdline()[:4]]
    return "dvc" in names


def environment_of(project: Path) -> dict[str, str]:
    """Return as tags what a stage runs in: SHA-256 of its lock file, name of its image.

    Args:
        project: The project's root; in an image the lock file lies beside the code.
    """
    beside_code = Path(__file__).parents[2]
    locks = (place / "requirements.lock" for place in (project, beside_code))
    lock = next((path for path in locks if path.is_file()), None)
    image = os.environ.get(_IMAGE, "")
    return {
        **({} if lock is None else {"lock_digest": sha256_file(lock)}),
        **({"image": image} if image else {}),
    }
