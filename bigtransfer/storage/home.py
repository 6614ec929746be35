"""Which project a folder belongs to: DVC runs its experiments in copies of it, which it removes.

What must outlive a copy lies in the project itself: resumable state, what is said to MLflow, why a
stage failed.
"""

from __future__ import annotations

import os
from pathlib import Path

from bigtransfer.errors import LAST_FAILURE

_COPIES = ((".dvc", "tmp", "exps", "standalone"), (".dvc", "tmp", "exps"))
"""Where DVC puts copies of a project."""
STUDIES = Path(".work") / "studies"
"""Where studies keep what they need, from the project."""
QUEUE = STUDIES / "queue"
"""The clone of the project in which DVC's queue of a study is."""
EXPERIMENT_MARK = "experiment"
"""File in the state of a training that is kept until the experiment that it holds is finished."""
_EXPERIMENT = "DVC_EXP_NAME"
"""Set by DVC in the stages of an experiment that has a name."""
_WORK = ".work"
STAGE_SECONDS = Path(_WORK) / "stage-seconds.json"
"""How long each stage took when it last ran, DVC's own work for it included; from the project."""


def home_of(project: Path) -> Path:
    """Return the project that a copy of it belongs to, or the project itself.

    `dvc exp run --temp` and `--queue` run in a copy below `.dvc/tmp/exps`; a study's queue is in a
    clone of the project, so that its own files are left alone.
    """
    project = _original_of(project.resolve())
    for folder in (project, *project.parents):
        if folder.parts[-len(QUEUE.parts) :] == QUEUE.parts:
            return folder.parents[len(QUEUE.parts) - 1] / project.relative_to(folder)
    return project


def _original_of(folder: Path) -> Path:
    for copy in (folder, *folder.parents):
        for place in _COPIES:
            if copy.parent.parts[-len(place) :] == place:
                return copy.parents[len(place)] / folder.relative_to(copy)
    return folder


def work_of(project: Path) -> Path:
    """Return where resumable state is kept: of the project, also from a copy of it.

    So an experiment that was killed goes on in its next copy where it stopped.
    """
    home = home_of(project)
    return Path(_WORK) if home == project.resolve() else home / _WORK


def copies_of(project: Path) -> Path:
    """Return the folder in which DVC makes the copies of a project that its queue runs in."""
    return project.resolve().joinpath(*_COPIES[-1])


def experiment_name(project: Path) -> str:
    """Return the name of the experiment that runs in this copy; empty where it is none."""
    return os.environ.get(_EXPERIMENT, "") if home_of(project) != project.resolve() else ""


def failure_file(project: Path, experiment: str = "") -> Path:
    """Return the file that says why the last stage failed, of an experiment where one is named."""
    home = home_of(project)
    if not experiment:
        return project / LAST_FAILURE
    return home / _WORK / "failures" / f"{experiment}.json"
