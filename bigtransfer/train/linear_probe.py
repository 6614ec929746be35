"""`preset: quick`: a linear head on the frozen network's features, in place of fine-tuning it.

A linear probe, and not the paper's protocol: the features are computed once, the head is a convex
problem, and the strength of its regularisation is chosen by folds of the training images. With all
training images a seed draws a bootstrap of them, class by class; the validation and test images
stay, so the spread over seeds is what these training images leave open.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.artifacts.cells import FULL, Cell
from bigtransfer.config import TaskParams
from bigtransfer.errors import ConfigError
from bigtransfer.metrics.multilabel import multi_hot
from bigtransfer.model.processor import use_cpu
from bigtransfer.progress import counted
from bigtransfer.storage import lock
from bigtransfer.train.cell import InitialWeights
from bigtransfer.train.cell_trainer import Effort, Finished, Job, figures_of, write_cell
from bigtransfer.train.features import FeatureSpec, FeatureStore, best_precision
from bigtransfer.train.forecast import warn_of_another_crop
from bigtransfer.train.grid import OVERRIDES, QUICK, Grid
from bigtransfer.train.interrupts import Interrupts
from bigtransfer.train.linear import Examples, choose_strength, fit_head

_UNUSED = tuple(name for name in OVERRIDES if name != "crop")
"""Params of a schedule, which a convex problem does not need."""
_USUAL_CROP = 224
PROBE_RECIPE = (
    "preset", "crop", "flip", "train_on", "threads", "abstain_accuracy", "precision", "sampling",
)  # fmt: skip
"""Params that decide what a head becomes, beside the data and the upstream weights."""


@dataclass(frozen=True)
class ProbeRule:
    """What a linear probe was fitted by, as its checkpoint notes it. Sizes in pixels."""

    crop: int
    flip: bool
    """Whether the mirror images were trained on, too."""
    precision: str
    """Of the features."""
    strength: float
    """Of the regularisation, against the sum of the losses."""
    images: int
    """Trained on, each once."""
    regime: str = QUICK


def require_possible(params: TaskParams) -> None:
    """Refuse what a linear probe cannot be.

    Raises:
        ConfigError: Names the key, and what to set.
    """
    if "scratch" in params.inits:
        raise ConfigError(
            f"task {params.name!r}: preset quick leaves the network as it is, so there is nothing "
            "to learn from scratch; set 'inits' to [upstream], or another preset"
        )


class LinearProbes:
    """The quick way: features once, then a head for each cell."""

    workers = 1
    """Heads take seconds."""

    def __init__(self, job: Job, grid: Grid, initial: InitialWeights, params: TaskParams) -> None:
        self._job, self._grid, self._params = job, grid, params
        crop = params.crop or initial.upstream.crop or _USUAL_CROP
        self.make = partial(ProbeTrainer, job=job, crop=crop)
        self._crop, self._upstream = crop, initial.upstream
        self._store = store_of(job, initial, crop)

    def explain(self, missing: list[int], longest_seconds: float | None) -> None:
        """Say what is done, and which params have no part in it."""
        params, flip = self._params, self._job.flip
        _say(
            f"{params.name}: preset quick, a linear probe and not the paper's protocol: features "
            f"of the network as it is, of each image{' and its mirror image' if flip else ''} at "
            f"{self._crop} px in {self._store.precision}, computed once; then a linear head"
        )
        unused = {name: getattr(params, name) for name in (*_UNUSED, "weight_decay")}
        if given := [f"{name} {value}" for name, value in unused.items() if value is not None]:
            _say(f"{params.name}: without effect under preset quick: {', '.join(given)}")
        warn_of_another_crop(params.name, self._crop, self._upstream.crop)

    def steps(self, cell: Cell) -> int:
        """Return one: a head is fitted at once."""
        return 1

    def prepare(self, missing: list[int], interrupts: Interrupts) -> None:
        """Compute what is lacking of the features that the missing cells need.

        Raises:
            KeyboardInterrupt, InfrastructureError: After Ctrl-C or SIGTERM; what is done is kept.
        """
        if not missing:
            return
        job, grid = self._job, self._grid
        use_cpu(job.machine.threads)
        # Of all that a cell's rows are drawn from: its strength is chosen by all of them.
        train = np.unique(np.concatenate([grid.images_of(grid.cells[n]) for n in missing]))
        for rows, mirrored in ((train, job.flip), (grid.validation_rows, False)):
            known = len(rows) - self._store.lacking(rows, mirrored=mirrored)
            if known:
                _say(f"{job.plan.task}: features of {counted(known, 'image')} are there already")
            label = f"features {job.plan.task}"
            self._store.compute(rows, interrupts, mirrored=mirrored, label=label)


def store_of(job: Job, initial: InitialWeights, crop: int) -> FeatureStore:
    """Open the features of a task's images, which lie beside its finished networks."""
    device = job.machine.settings(0).device
    precision = best_precision(job.machine.precision, device)
    spec = FeatureSpec(job.pretrained, initial.upstream.digest, crop, precision)
    folder = job.done.parent / "features" / initial.shards.summary.dataset
    return FeatureStore(folder, spec, initial.shards, device)


class ProbeTrainer:
    """Fits the heads of a grid, one after another, on the CPU."""

    def __init__(self, number: int, *, job: Job, crop: int) -> None:
        use_cpu(job.machine.threads)
        self._job, self._crop = job, crop
        self._initial = job.initial()
        self._grid = Grid(job.plan, self._initial)
        self._store = store_of(job, self._initial, crop)
        self._strengths: dict[tuple[int | str, int | None], float] = {}

    def __call__(
        self, number: int, interrupts: Interrupts, tell: Callable[[int], None]
    ) -> Finished:
        """Fit a head, write the checkpoint of the whole network, and return its scores."""
        job, grid, began = self._job, self._grid, time.monotonic()
        cell = grid.cells[number]
        with lock(job.done / f"{cell.name}.lock", f"cell {cell.name} of task {job.plan.task!r}"):
            rows, counts = np.unique(grid.rows(cell), return_counts=True)
            strength = self._strength(cell, interrupts)
            examples = self._examples(rows)
            head = fit_head(examples, counts.astype(np.float64), strength)
            model = self._initial.network(cell)
            with torch.no_grad():
                model.head.weight.copy_(head.weight)
                model.head.bias.copy_(head.bias)
            held = grid.validation_rows
            logits = self._store.of(held) @ head.weight.numpy().T + head.bias.numpy()
            calibration = grid.calibration_of(logits)
            rule = ProbeRule(self._crop, job.flip, self._store.precision, strength, len(rows))
            write_cell(
                job, cell, self._initial, grid, model, curve=[],
                crop=self._crop, verdict=asdict(rule), calibration=calibration,
            )  # fmt: skip
        tell(1)
        figures = {"final_loss": head.loss, "strength": strength, **figures_of(calibration)}
        device = job.machine.settings(0).device
        return Finished(figures, [], Effort.since(began, device, job.machine.threads))

    def _strength(self, cell: Cell, interrupts: Interrupts) -> float:
        """Return the strength of a cell: one for all seeds that draw from the same images."""
        rows = self._grid.images_of(cell)
        key = (cell.examples_per_class, None if cell.examples_per_class == FULL else cell.seed)
        if key not in self._strengths:
            if interrupts.wanted:
                interrupts.end(0)
            weights = self._grid.weights_of(rows)
            self._strengths[key] = choose_strength(self._examples(rows), weights)
        return self._strengths[key]

    def _examples(self, rows: NDArray[np.int64]) -> Examples:
        shards = self._initial.shards
        views = [self._store.of(rows)]
        if self._job.flip:
            views.append(self._store.of(rows, mirrored=True))
        targets = multi_hot(shards.targets(rows), len(shards.classes)).astype(np.float32)
        return Examples(np.stack(views, 1), targets, shards.summary.multi_label)


def _say(line: str) -> None:
    print(line, flush=True)
