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
from contextlib import suppress
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
                 "checkpoints": self._made(f"{name}/checkpoints")}  # fmt: skip
        self._run("finetune", f"finetune@{name}", task, paths)

    def evaluate(self, task: str, shards: Path) -> None:
        from components.evaluate import COMPONENT as EVALUATE

        made = {name: self._made(f"{task}/{name}") for name in EVALUATE.writes}
        paths = {"checkpoints": self._made(f"{task}/checkpoints"), "shards": shards, **made}
        self._run("evaluate", f"evaluate@{task}", self._params.evaluate, paths)

    def found(self) -> Found:
        """Return what the stages have found, once all are through."""
        from bigtransfer.artifacts.report import TaskReport
        from bigtransfer.storage import read_json
        from bigtransfer.study.states import found_in

        tasks = {task.name: task for task in self._params.tasks}
        reports = {name: TaskReport.read(self._made(f"{name}/report")) for name in tasks}
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
        from bigtransfer.errors import InfrastructureError, LockError
        from bigtransfer.storage.home import failure_file

        if name in _finished:
            return
        line = [sys.executable, "-m", *launcher, f"components.{component}",
                "--params-json", section.model_dump_json()]  # fmt: skip
        for flag, path in paths.items():
            line += [f"--{flag}", str(path)]
        told = failure_file(self._stage.project)
        told.unlink(missing_ok=True)
        code = _wait(
            subprocess.Popen(line, env={**os.environ, STAGE: name, CELL: self._stage.name})
        )
        if code == 0:
            _finished.add(name)
            return
        why = f"{name}: {_why(told, code)}"
        if code in (130, -signal.SIGINT, -signal.SIGTERM):
            raise KeyboardInterrupt
        if code < 0 or code in (InfrastructureError.exit_code, LockError.exit_code):
            raise InfrastructureError(why)
        raise _CellFailed(why)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a stage; SIGTERM is passed on, so that it saves what it has."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    try:
        while True:
            with suppress(KeyboardInterrupt):  # a terminal sends it to both
                return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _why(told: Path, code: int) -> str:
    from bigtransfer.errors import BigTransferError
    from bigtransfer.storage import read_json

    if code < 0:
        return (
            f"was killed by signal {-code}; where that is 9, memory most likely ran out: give the "
            "pool of pretrain more (cluster.pools)"
        )
    try:
        return " ".join(str(read_json(told)["message"]).split())
    except (BigTransferError, KeyError, TypeError):
        return f"ended with {code}; its log says why"


if __name__ == "__main__":
    main(COMPONENT, run)
