"""What trains the networks of a grid one after another: HyperRule's way, on one device."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from bigtransfer.artifacts.base import Json
from bigtransfer.artifacts.calibration import Calibration, MultiLabelCalibration
from bigtransfer.artifacts.cells import Cell
from bigtransfer.artifacts.weights import TunedMeta
from bigtransfer.config import TaskParams
from bigtransfer.data.shards import open_shards
from bigtransfer.model.checkpoint import read_meta, write_checkpoint
from bigtransfer.model.processor import most_memory, use_cpu
from bigtransfer.model.resnet import ResNetV2
from bigtransfer.progress import counted
from bigtransfer.storage import lock
from bigtransfer.storage.places import Place
from bigtransfer.storage.s3 import S3Path
from bigtransfer.train.cell import CheckpointPolicy, InitialWeights, Scoring, train_cell
from bigtransfer.train.compute import Machine
from bigtransfer.train.curve import Row, thinned
from bigtransfer.train.devices import Device
from bigtransfer.train.fitting import images_that_fit
from bigtransfer.train.forecast import warn_if_long, warn_of_another_size
from bigtransfer.train.grid import Grid, GridPlan
from bigtransfer.train.interrupts import Interrupts
from bigtransfer.train.mirror import state_target
from bigtransfer.train.workers import Work

_SCORES = ("val_top1", "val_map")
"""Figures of a finished network that its curve on validation ends with."""


@dataclass(frozen=True)
class Finished:
    """What a worker tells of a finished cell."""

    figures: dict[str, float]
    curve: list[Row]
    """`step` and what was noted for it; empty where there are no steps."""
    effort: Effort


@dataclass(frozen=True)
class Effort:
    """What a cell has cost, since it was begun or gone on with."""

    seconds: float
    device: str
    """For people."""
    peak_memory_bytes: int
    """Held of a GPU; on a CPU, by the process."""

    @classmethod
    def since(cls, began: float, device: Device, threads: int) -> Effort:
        """Return it for what began at a time of `time.monotonic`."""
        if device.is_cuda:
            name, peak = device.name, torch.cuda.max_memory_allocated(device.torch)
        else:
            name = f"CPU, {counted(threads, 'thread')}"
            peak = most_memory()
        return cls(time.monotonic() - began, name, int(peak))


@dataclass(frozen=True)
class Job:
    """What a worker has to do; travels to worker processes."""

    plan: GridPlan
    machine: Machine
    pretrained: Path
    """Upstream checkpoint."""
    shards_place: Place
    trained: str
    """`all` weights, or the `head` alone."""
    flip: bool
    checkpoint_seconds: float
    mirror_place: S3Path | None
    """Of the run, in the mirror."""
    done: Path
    """Folder of finished networks."""
    code: str
    """Version of the code that trains."""

    def initial(self) -> InitialWeights:
        """Open what the networks start from."""
        shards = open_shards(self.shards_place)
        return InitialWeights(self.pretrained, read_meta(self.pretrained), shards, self.trained)


class Method(Protocol):
    """A way from given weights to the networks of a grid."""

    @property
    def make(self) -> Callable[[int], Work]:
        """Return what makes a worker, given its number; can be pickled."""

    @property
    def workers(self) -> int:
        """Return how many work at a time."""

    def explain(self, missing: list[int], longest_seconds: float | None) -> None:
        """Say beforehand what is done of the missing cells, and how long it takes.

        Raises:
            TooLongError: If that is longer than anybody has agreed to; None: it is only said.
        """

    def steps(self, cell: Cell) -> int:
        """Return the steps of a cell, for the progress bar."""

    def prepare(self, missing: list[int], interrupts: Interrupts) -> None:
        """Do once what all the missing cells need."""


class Trainings:
    """The paper's: whole trainings by the HyperRule."""

    def __init__(self, job: Job, grid: Grid, params: TaskParams) -> None:
        self.make = partial(CellTrainer, job=job)
        gpus = 0 if params.device == "cpu" else torch.cuda.device_count()
        self.workers = params.workers or max(1, gpus)
        self._job, self._grid = job, grid

    def explain(self, missing: list[int], longest_seconds: float | None) -> None:
        """Say each value of the rule, and what may be wrong with it."""
        upstream = read_meta(self._job.pretrained)
        for line in self._grid.explained():
            _say(line)
        warn_of_another_size(self._grid, upstream)
        warn_if_long(self._grid, missing, upstream, self._job.machine, longest_seconds)

    def steps(self, cell: Cell) -> int:
        """Return the optimiser steps."""
        return self._grid.rule(cell.examples_per_class).total_steps

    def prepare(self, missing: list[int], interrupts: Interrupts) -> None:
        """Do nothing: every training begins by itself."""


class CellTrainer:
    """Trains the cells of a grid, one after another, on one device."""

    def __init__(self, number: int, *, job: Job) -> None:
        use_cpu(job.machine.threads)
        self._job = job
        # Kept for all cells: a micro-batch that had to be halved is too large for the next, too.
        self._compute = job.machine.settings(number)
        self._initial = job.initial()
        self._grid = Grid(job.plan, self._initial)
        if not self._compute.device.is_cuda and job.machine.micro_batch_size is None:
            self._compute.micro_batch_size = self._images_that_fit()

    def __call__(
        self, number: int, interrupts: Interrupts, tell: Callable[[int], None]
    ) -> Finished:
        """Train a cell, write its checkpoint, and return its scores and its curve."""
        grid, job = self._grid, self._job
        cell = grid.cells[number]
        verdict = grid.rule(cell.examples_per_class)
        state = job.done / f"{cell.name}.state"
        mirror = state_target(job.mirror_place, cell.name, _say)
        began, device = time.monotonic(), self._compute.device
        with lock(job.done / f"{cell.name}.lock", f"cell {cell.name} of task {job.plan.task!r}"):
            found = train_cell(
                cell,
                self._initial,
                grid.rows(cell),
                verdict,
                flip=job.flip,
                weight_decay=job.plan.weight_decay,
                compute=self._compute,
                policy=CheckpointPolicy(
                    state, job.checkpoint_seconds, interrupts, job.code, mirror
                ),
                scoring=Scoring(
                    grid.validation_steps(verdict),
                    lambda model: grid.validation_scores(model, verdict, self._compute),
                ),
                advance=tell,
            )
            calibration = grid.calibration(found.model, verdict, self._compute)
            figures = figures_of(calibration)
            curve = thinned(found.curve)
            curve[-1] |= {name: figures[name] for name in _SCORES if name in figures}
            decay = job.plan.weight_decay
            told = asdict(verdict) | ({"weight_decay": decay} if decay else {})
            write_cell(
                job, cell, self._initial, grid, found.model, curve=curve,
                crop=verdict.crop, verdict=told, calibration=calibration,
            )  # fmt: skip
            shutil.rmtree(state, ignore_errors=True)
        effort = Effort.since(began, device, job.machine.threads)
        return Finished({"final_loss": found.loss, **figures}, curve, effort)

    def _images_that_fit(self) -> int | None:
        rule = self._grid.rule(self._grid.cells[0].examples_per_class)
        kind = self._initial.upstream
        fit = images_that_fit(
            kind.architecture,
            len(self._initial.shards.classes),
            rule.crop,
            kind.root,
            kind.norm,
            self._compute.recompute,
        )
        return fit if fit < rule.batch_size else None


def write_cell(
    job: Job,
    cell: Cell,
    initial: InitialWeights,
    grid: Grid,
    model: ResNetV2,
    *,
    curve: list[Row],
    crop: int,
    verdict: Json,
    calibration: Calibration | MultiLabelCalibration,
) -> None:
    """Write the checkpoint of a finished cell.

    Args:
        job: What it is part of.
        cell: Which one.
        initial: What it started from.
        grid: All cells.
        model: The network.
        curve: Of its training.
        crop: Side of the square that it takes, pixels.
        verdict: What it was trained by.
        calibration: What the validation split says of it.
    """
    upstream = initial.upstream
    meta = TunedMeta(
        architecture=upstream.architecture,
        root=upstream.root,
        norm=upstream.norm,
        classes=tuple(initial.shards.classes),
        crop=crop,
        decode=initial.shards.summary.decode,
        task=job.plan.task,
        **cell.model_dump(),
        trained=initial.trained,
        train_on=job.plan.train_on,
        hyperrule=json.loads(json.dumps(verdict)),
        calibration=calibration,
        upstream_digest=upstream.digest if cell.init == "upstream" else None,
        shards_digest=initial.shards.digest,
        code=job.code,
    )
    seen = initial.shards.origin_digests(np.unique(grid.rows(cell)))
    write_checkpoint(job.done / cell.name, model.cpu(), meta, trained_on=seen, curve=curve)


def figures_of(calibration: Calibration | MultiLabelCalibration) -> dict[str, float]:
    """Return the scores of a calibration by the names that they are logged under."""
    figures = calibration.model_dump(exclude={"held_out", "thresholds"}, exclude_none=True)
    return {f"val_{name}": value for name, value in figures.items()}


def _say(line: str) -> None:
    print(line, flush=True)
