"""A cell of a study: an upstream training and its transfer to every task, in one task of KFP.

It runs the lines of `pretrain`, `finetune` and `evaluate` as DVC does, and hands on what became of
it. A cell that failed is an outcome, too: where a task fails, Kubeflow Pipelines (issue 7330)
begins no other any more, and the other cells would be lost with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import CELL, STAGE, Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.artifacts.cell_outcome import Found
    from bigtransfer.config import Section, StudyCellParams, TaskParams

COMPONENT = Component(
    "study_cell",
    "Train a cell of a study upstream and transfer it to every task; a failure is an outcome, too.",
    params="StudyCellParams",
    section="study_cell",
    reads={
        "shards": "shards of the upstream dataset",
        "probe": "shards on which frozen features are tried (pretrain.probe)",
    },
    reads_each={
        "task_shards": "shards of a task's dataset, for each task",
        "audit": "folder written by audit, for each task",
    },
    writes={"outcome": "folder with cell.json: its figures, or why it failed"},
)
_OF_A_SIGNAL = 128
"""Above it stands what a shell makes of a process that a signal ended."""
_finished: set[str] = set()
"""Stages that this process has seen through: what is tried again begins behind them."""


def run(
    stage: Stage,
    params: StudyCellParams,
    *,
    shards: Path,
    probe: Path,
    task_shards: Mapping[str, Path],
    audit: Mapping[str, Path],
    outcome: Path,
) -> None:
    """Run all stages of a cell."""
    from bigtransfer.artifacts.cell_outcome import CellOutcome
    from bigtransfer.storage import new_folder

    _require_tasks(params, task_shards, audit)
    stage.journal.params({**params.labels, "upstream_seed": params.seed, "cell": params.name})
    place = (stage.work / params.name).resolve()
    lines = _Lines(stage, params, place)
    failure, found = "", None
    try:
        lines.pretrain(shards, probe)
        for task in params.tasks:
            lines.finetune(task, task_shards[task.name], audit[task.name])
            lines.evaluate(task.name, task_shards[task.name])
    except _CellFailed as failed:
        failure = str(failed)
    else:
        found = lines.found()
    with new_folder(outcome) as folder:
        ended = CellOutcome(name=params.name, title=params.title, found=found, failure=failure)
        ended.write(folder)
    if found is None:
        stage.journal.tags({"failure": failure})
        print(f"{params.title} failed: {failure}")
        return
    stage.log(0, found.figures())
    print(f"{params.title}: validation top-1 {100 * found.val_top1:.1f} %")


def _require_tasks(params: StudyCellParams, *given: Mapping[str, Path]) -> None:
    """Refuse a line that gives other tasks than the section has, before anything is trained."""
    from bigtransfer.errors import ConfigError

    wanted = {task.name for task in params.tasks}
    for own in given:
        if wrong := sorted(wanted ^ {*own}):
            raise ConfigError(
                f"--task-shards and --audit are wanted for each of {', '.join(sorted(wanted))}; "
                f"{wrong[0]!r} is {'missing' if wrong[0] in wanted else 'none of them'}"
            )


class _CellFailed(Exception):
    """A stage was refused, or has a bug: the same would fail again."""


class _Lines:
    """The command lines of a cell's stages, and where they write."""

    def __init__(self, stage: Stage, params: StudyCellParams, place: Path) -> None:
        self._stage, self._params, self._place = stage, params, place

    def pretrain(self, shards: Path, probe: Path) -> None:
        made = {name: self._made(name) for name in ("checkpoint", "metrics", "history")}
        torchrun = []
        if self._params.processes > 1:
            torchrun = ["torch.distributed.run", "--standalone",
                        "--nproc-per-node", str(self._params.processes), "-m"]  # fmt: skip
        paths = {"shards": shards, "probe": probe, **made}
        self._run("pretrain", "pretrain", self._params.pretrain, paths, torchrun)

    def finetune(self, task: TaskParams, shards: Path, audit: Path) -> None:
        name = task.name
        paths = {"pretrained": self._made("checkpoint"), "shards": shards, "audit": audit,
                 "checkpoints": self._made(f"tasks/{name}/checkpoints")}  # fmt: skip
        self._run("finetune", f"finetune@{name}", task, paths)

    def evaluate(self, task: str, shards: Path) -> None:
        from components.evaluate import COMPONENT as EVALUATE

        made = {name: self._made(f"tasks/{task}/{name}") for name in EVALUATE.writes}
        paths = {"checkpoints": self._made(f"tasks/{task}/checkpoints"), "shards": shards, **made}
        self._run("evaluate", f"evaluate@{task}", self._params.evaluate, paths)

    def found(self) -> Found:
        """Return what the stages have found, once all are through."""
        from bigtransfer.artifacts.report import TaskReport
        from bigtransfer.storage import read_json
        from bigtransfer.study.states import found_in

        tasks = {task.name: task for task in self._params.tasks}
        reports = {name: TaskReport.read(self._made(f"tasks/{name}/report")) for name in tasks}
        history = self._made("history").read_text("utf-8")
        return found_in(read_json(self._made("metrics")), history, reports, tasks)

    def _made(self, name: str) -> Path:
        return self._place / name

    def _run(
        self,
        component: str,
        name: str,
        section: Section,
        paths: Mapping[str, Path],
        launcher: Sequence[str] = (),
    ) -> None:
        """Run a stage.

        Raises:
            _CellFailed: If it was refused, or has a bug.
            InfrastructureError: If it may work the next time.
            KeyboardInterrupt: If it was stopped.
        """
        from bigtransfer.errors import InfrastructureError, LockError, StoppedError
        from bigtransfer.storage.home import failure_file

        if name in _finished:
            return
        line = [sys.executable, "-m", *launcher, f"components.{component}",
                "--params-json", section.model_dump_json()]  # fmt: skip
        for flag, path in paths.items():
            line += [f"--{flag}", str(path)]
        told = failure_file(self._stage.project)
        told.unlink(missing_ok=True)
        environment = {**os.environ, STAGE: name, CELL: self._stage.name}
        code, stopped = _ended(line, environment)
        if code == 0:
            _finished.add(name)
            return
        if stopped == signal.SIGINT:
            raise KeyboardInterrupt
        if stopped is not None:
            raise StoppedError(f"{name} was stopped by SIGTERM; run the same again to go on")
        told_code, words = _told(told)
        if told_code is not None:  # `torchrun` ends with 1 whatever its workers ended with
            code = told_code
        elif launcher and code == 1:
            raise InfrastructureError(f"{name}: a process of it is gone; its log says why")
        why = f"{name}: {words or _unexplained(code)}"
        lost = code < 0 or code > _OF_A_SIGNAL
        if lost or code in (InfrastructureError.exit_code, LockError.exit_code):
            raise InfrastructureError(why)
        raise _CellFailed(why)


def _ended(line: Sequence[str], environment: Mapping[str, str]) -> tuple[int, int | None]:
    """Run a stage; return its exit code, and the signal that was sent to this process meanwhile.

    SIGTERM is passed on, so that the stage saves what it has; Ctrl-C a terminal sends to both.
    """
    seen: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def note(number: int, frame: object) -> None:
        seen.append(number)
        if number == signal.SIGTERM:
            for process in running:
                process.terminate()

    before = {one: signal.signal(one, note) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        running.append(subprocess.Popen([*line], env=dict(environment)))
        if signal.SIGTERM in seen:  # it came in between
            running[0].terminate()
        return running[0].wait(), seen[0] if seen else None
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _told(file: Path) -> tuple[int | None, str]:
    """Return with what code and words a stage ended; None: it could not say."""
    from bigtransfer.errors import BigTransferError
    from bigtransfer.storage import read_json

    try:
        facts = read_json(file)
        return int(facts["exit_code"]), " ".join(str(facts["message"]).split())
    except (BigTransferError, KeyError, TypeError, ValueError):
        return None, ""


def _unexplained(code: int) -> str:
    number = -code if code < 0 else code - _OF_A_SIGNAL
    if number > 0:
        return (
            f"was killed by signal {number}; where that is 9, memory most likely ran out: give the "
            "pool of pretrain more (cluster.pools)"
        )
    return f"ended with {code}; its log says why"


if __name__ == "__main__":
    main(COMPONENT, run)
