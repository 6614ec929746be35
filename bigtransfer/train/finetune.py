"""Transfer to a task: every cell (init, examples per class, seed) of a small grid, by HyperRule."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.config import TaskParams
from bigtransfer.data.batches import Squares, few_shot_rows
from bigtransfer.data.places import Place
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import ConfigError, DatasetError
from bigtransfer.evaluate.calibration import calibration_of
from bigtransfer.evaluate.prediction import predict
from bigtransfer.model.checkpoint import read_meta, write_checkpoint
from bigtransfer.model.resnet import ResNetV2
from bigtransfer.progress import progress
from bigtransfer.storage import as_json, new_folder, verify_folder
from bigtransfer.train.cell import FULL, Cell, Keeping, Start, train_cell
from bigtransfer.train.devices import choose_device
from bigtransfer.train.hyperrule import HyperRule, hyperrule
from bigtransfer.train.interrupts import watched
from bigtransfer.train.loop import Machine
from bigtransfer.train.state import fingerprint

Log = Callable[[int, dict[str, float]], None]
"""`log(step, metrics)`: where curves go."""
OVERRIDES = (
    "total_steps", "warmup_steps", "decay_steps", "batch_size", "base_lr", "precrop", "crop",
    "mixup_alpha",
)  # fmt: skip
"""Params that replace the HyperRule's own value where they are not null."""
RECIPE = (
    *OVERRIDES, "preset", "random_crop", "flip", "trained", "train_on", "threads",
    "abstain_accuracy",
)  # fmt: skip
"""Params that decide what a cell becomes, beside the data and the upstream weights."""
_STOP_SECONDS = 12.0
_VALIDATION_BATCH = 256


def finetune(
    params: TaskParams, pretrained: Path, shards_place: Place, output: Path, work: Path, log: Log
) -> dict[str, Any]:
    """Fine-tune every cell and write one folder with a checkpoint per cell and `cells.json`.

    Each cell starts from the upstream weights (or, for `scratch`, from fresh ones of the same
    architecture) with a zero head, and trains by HyperRule's schedule. Finished cells are kept
    under `work`, and the state of the one that is being trained: an interrupted run goes on at the
    step where it was.

    Args:
        params: Of the task.
        pretrained: Upstream checkpoint.
        shards_place: Shards of the task's dataset; needs the splits train and val.
        output: Folder to write.
        work: Folder for resumable state.
        log: Receives the scores of each finished cell.

    Returns:
        What `cells.json` holds.

    Raises:
        DatasetError: If a class has fewer images than the largest subset needs.
        ConfigError: If few-shot subsets are asked of a dataset with several labels per image.
        KeyboardInterrupt, InfrastructureError: After Ctrl-C or SIGTERM; the same again goes on.
    """
    torch.set_num_threads(params.threads)
    machine = Machine(
        choose_device(params.device), precision=params.precision,
        micro_batch_size=params.micro_batch_size,
    )  # fmt: skip
    upstream = read_meta(pretrained)
    shards = open_shards(shards_place)
    if params.trained == "head" and upstream["norm"] in ("bn", "bn_ws"):
        raise ConfigError(
            f"trained: head leaves the network as it is, but norm {upstream['norm']} changes with "
            "every batch; set 'trained' to all"
        )
    start = Start(pretrained, upstream, shards, params.trained)
    grid = _Grid(params, start)
    recipe = recipe_of(params)
    key = fingerprint(recipe=recipe, upstream=upstream["digest"], shards=shards.digest)
    done = work / key
    for line in grid.explained():
        print(line, flush=True)
    finished = 0
    with (
        watched(_STOP_SECONDS) as interrupts,
        progress(f"fine-tune {params.name}", grid.total_steps, unit="step") as advance,
    ):
        for number, cell in enumerate(grid.cells):
            verdict = grid.rule(cell.examples_per_class)
            if not (done / cell.name).is_dir():
                before, state = finished, done / f"{cell.name}.state"
                model, loss = train_cell(
                    cell, start, grid.rows(cell), verdict, flip=params.flip, machine=machine,
                    keeping=Keeping(state, params.checkpoint_seconds, interrupts),
                    advance=lambda step: advance(before + step, cell.name),  # noqa: B023  # called before the next turn
                )  # fmt: skip
                meta = _meta(params, cell, start, verdict, grid.validation(model, verdict, machine))
                write_checkpoint(done / cell.name, model.cpu(), meta)
                shutil.rmtree(state, ignore_errors=True)
                log(number, {"final_loss": loss, **_figures(meta["validation"])})
            finished += verdict.total_steps
            advance(finished, cell.name)
    result = {
        "task": params.name,
        "dataset": shards.summary["dataset"],
        "multi_label": shards.summary["multi_label"],
        "upstream_digest": upstream["digest"],
        "shards_digest": shards.digest,
        "recipe": recipe,
        "cells": [{**asdict(cell), "folder": cell.name} for cell in grid.cells],
    }
    with new_folder(output) as partial:
        for cell in grid.cells:
            verify_folder(done / cell.name)
            shutil.copytree(done / cell.name, partial / cell.name)
        (partial / "cells.json").write_text(as_json(result), "utf-8")
    shutil.rmtree(done)
    return result


def cells_of(params: TaskParams) -> list[Cell]:
    """Return the cells of a grid, in order."""
    return [
        Cell(init, k, seed)
        for init in params.inits
        for k in params.examples_per_class
        for seed in params.seeds
    ]


def recipe_of(params: TaskParams) -> dict[str, Any]:
    """Return the params that decide what a cell becomes."""
    return {name: getattr(params, name) for name in RECIPE}


class _Grid:
    """The cells of a task: what each is trained on, and by which rule."""

    def __init__(self, params: TaskParams, start: Start) -> None:
        self._params, self._shards = params, start.shards
        self._architecture = start.upstream["architecture"]
        self._train = np.concatenate([start.shards.rows(split) for split in params.train_on])
        self._val: Squares | None = None
        counts = params.examples_per_class
        if start.shards.summary["multi_label"] and any(k != FULL for k in counts):
            raise ConfigError(
                f"dataset {start.shards.summary['dataset']!r} has several labels per image, of "
                f"which no balanced few-shot subset can be drawn; set 'examples_per_class' of task "
                f"{params.name!r} to [{FULL}]"
            )
        self.cells = cells_of(params)
        self._subsets: dict[tuple[int | str, int], NDArray[np.int64]] = {
            (k, seed): self._train if k == FULL else self._train[self._subset(int(k), seed)]
            for k in counts
            for seed in params.seeds
        }

    @property
    def total_steps(self) -> int:
        return sum(self.rule(cell.examples_per_class).total_steps for cell in self.cells)

    def rows(self, cell: Cell) -> NDArray[np.int64]:
        """Return the index rows that a cell is trained on."""
        return self._subsets[cell.examples_per_class, cell.seed]

    def rule(self, examples_per_class: int | str) -> HyperRule:
        """Return the verdict for a subset's size, with the user's own values in it."""
        given = {name: getattr(self._params, name) for name in OVERRIDES}
        verdict = self._own_rule(examples_per_class).overridden(**given)
        return verdict if self._params.random_crop else replace(verdict, precrop=verdict.crop)

    def validation(self, model: ResNetV2, rule: HyperRule, machine: Machine) -> dict[str, Any]:
        """Return what the validation split says of a network."""
        if self._val is None or self._val.side != rule.crop:
            self._val = Squares(self._shards, self._shards.rows("val"), rule.crop)
        size = machine.micro_batch_size or min(rule.batch_size, _VALIDATION_BATCH)
        logits = predict(model, self._val, size, machine.device.torch)
        return calibration_of(
            logits, self._val.labels, multi_label=self._shards.summary["multi_label"],
            abstain_accuracy=self._params.abstain_accuracy,
            held_out="val" not in self._params.train_on,
        )  # fmt: skip

    def explained(self) -> list[str]:
        """Return a line per subset size: each value of the rule, and whose it is."""
        lines = []
        for k in dict.fromkeys(self._params.examples_per_class):
            own, used = asdict(self._own_rule(k)), asdict(self.rule(k))
            images = len(next(rows for (size, _), rows in self._subsets.items() if size == k))
            parts = [
                f"{name} {_shown(value)}"
                + ("" if value == own[name] else f" (params; the rule says {_shown(own[name])})")
                for name, value in used.items()
            ]
            lines.append(
                f"{self._params.name}, {k} per class, {images:,} images, HyperRule "
                f"'{self._params.preset}': " + ", ".join(parts)
            )
        return lines

    def _own_rule(self, examples_per_class: int | str) -> HyperRule:
        full = examples_per_class == FULL
        return hyperrule(
            num_examples=len(self._train)
            if full
            else int(examples_per_class) * len(self._shards.classes),
            height=self._shards.summary["height"],
            width=self._shards.summary["width"],
            architecture=self._architecture,
            preset=self._params.preset,
        )

    def _subset(self, k: int, seed: int) -> NDArray[np.int64]:
        shards = self._shards
        labels = shards.labels(self._train)
        counts = np.bincount(labels, minlength=len(shards.classes))
        poorest = int(counts.argmin())
        if counts[poorest] < k:
            raise DatasetError(
                f"dataset {shards.summary['dataset']!r}: class {shards.classes[poorest]!r} has "
                f"{counts[poorest]} train images, but 'examples_per_class' asks for {k}; lower it "
                "or add images"
            )
        return few_shot_rows(labels, k, seed)


def _meta(
    params: TaskParams, cell: Cell, start: Start, rule: HyperRule, validation: dict[str, Any]
) -> dict[str, Any]:
    upstream = start.upstream
    return {
        "architecture": upstream["architecture"],
        "root": upstream["root"],
        "norm": upstream["norm"],
        "classes": start.shards.classes,
        "multi_label": start.shards.summary["multi_label"],
        "crop": rule.crop,
        "task": params.name,
        **asdict(cell),
        "trained": params.trained,
        "train_on": list(params.train_on),
        "hyperrule": asdict(rule),
        "validation": validation,
        "upstream_digest": upstream["digest"] if cell.init == "upstream" else None,
        "shards_digest": start.shards.digest,
    }


def _figures(validation: dict[str, Any]) -> dict[str, float]:
    return {f"val_{k}": v for k, v in validation.items() if type(v) in (int, float)}


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
