"""What finished cells say: read from the commits that DVC made of them, and from its cache."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bigtransfer.artifacts.report import TaskReport
from bigtransfer.errors import BigTransferError
from bigtransfer.storage.dvc_cache import LOCK_FILE, files_of, read_lock
from bigtransfer.study.cells import StudyCell
from bigtransfer.study.clone import cache_of, experiments, git
from bigtransfer.study.states import Result, found_in

_MADE = ("artifacts/", "data/")
"""Where dependencies lie that are no code."""
_METRICS = "artifacts/pretrain/metrics.json"
_HISTORY = "artifacts/pretrain/history.csv"


class Results:
    """The finished cells that the project has."""

    def __init__(self, project: Path) -> None:
        self._project = project
        self._refs: dict[str, list[str]] = {}
        for ref in experiments(project):
            self._refs.setdefault(ref.rpartition("/")[2], []).append(ref)

    def refs(self, cell: StudyCell) -> list[str]:
        """Return all experiments of a cell, of whatever commit, the newest first."""
        return self._refs.get(cell.name, [])

    def of(self, cell: StudyCell) -> Result | None:
        """Return what a cell has found: of this code and these data if there is such, else marked.

        None where it is not finished, where not all tasks and seeds are there that the study wants
        by now, or where DVC's cache has lost what it made.
        """
        found = [result for ref in self.refs(cell) if (result := self._read(ref, cell))]
        return next((one for one in found if not one.mark), found[0] if found else None)

    def _read(self, ref: str, cell: StudyCell) -> Result | None:
        try:
            stages = read_lock(git(self._project, "show", f"{ref}:{LOCK_FILE}"))
            made = _outs(stages)
            upstream = json.loads(self._text(made[_METRICS]))
            reports = {task: self._report(made, task, ref) for task in cell.tasks}
            found = found_in(upstream, self._text(made[_HISTORY]), reports, cell.params.tasks)
        except (OSError, KeyError, ValueError, TypeError, BigTransferError):
            return None
        return Result(**dict(found), ref=ref, mark=self._mark(ref, stages, cell))

    def _report(self, made: dict[str, str], task: str, ref: str) -> TaskReport:
        digest = made[f"artifacts/evaluate/{task}/report"]
        return TaskReport.parse(json.loads(self._text(digest, TaskReport.FILE)), ref)

    def _text(self, digest: str, name: str = "") -> str:
        return files_of(digest, self._cache)[name].read_text("utf-8")

    def _mark(self, ref: str, stages: dict[str, Any], cell: StudyCell) -> str:
        names = ["pretrain", *(f"{one}@{task}" for task in cell.tasks for one in _AFTER)]
        deps = {dep["path"]: dep["md5"] for name in names for dep in stages[name]["deps"]}
        marks = [f"other params: {name}" for name in _other_params(stages, cell)]
        for path, digest in deps.items():
            if path.endswith("/shards") and self._here.get(path) != digest:
                marks.append(f"other data: {path.split('/')[-2]}")
        code = [path for path in deps if not path.startswith(_MADE)]
        changed = git(self._project, "diff", "--name-only", ref, "HEAD", "--", *code).splitlines()
        if changed:
            rooms = dict.fromkeys(_room(path) for path in changed)
            marks.append(f"other code: {', '.join(rooms)}")
        return "; ".join(dict.fromkeys(marks))

    @cached_property
    def _cache(self) -> Path:
        return cache_of(self._project) / "files" / "md5"

    @cached_property
    def _here(self) -> dict[str, str]:
        """Return the digests of the data as they are now."""
        try:
            return _outs(read_lock((self._project / LOCK_FILE).read_text("utf-8")))
        except (OSError, ValueError):
            return {}


_AFTER: Sequence[str] = ("finetune", "evaluate")


def _other_params(stages: dict[str, Any], cell: StudyCell) -> Iterator[str]:
    """Yield the params that an experiment was made with otherwise than the cell says."""
    for section, wanted in cell.decisive().items():
        if section == "pretrain":
            said = stages["pretrain"]["params"]["params.yaml"]["pretrain"]
        else:
            params = stages[f"finetune@{section}"]["params"]["params.yaml"]
            said = {**params["finetune"], **params[f"tasks.{section}"]}
        for name, value in wanted.items():
            if said.get(name) != value:
                yield f"{section}.{name}"


def _outs(stages: dict[str, Any]) -> dict[str, str]:
    return {
        out["path"]: out["md5"]
        for stage in stages.values()
        for out in stage.get("outs", ())
        if "md5" in out
    }


def _room(path: str) -> str:
    parts = Path(path).parts
    return "/".join(parts[:2])
