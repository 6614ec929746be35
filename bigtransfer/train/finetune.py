"""Transfer to a task: every cell (init, examples per class, seed) of a small grid, by HyperRule."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.data.batches import Squares, TrainBatches, few_shot_rows
from bigtransfer.data.shards import Shards, open_shards
from bigtransfer.errors import DatasetError
from bigtransfer.model.checkpoint import load_checkpoint, read_meta, write_checkpoint
from bigtransfer.model.resnet import ResNetV2, create_model
from bigtransfer.progress import progress
from bigtransfer.storage import as_json, new_folder, verify_folder
from bigtransfer.train.hyperrule import HyperRule, hyperrule
from bigtransfer.train.loop import Watcher, run_steps
from bigtransfer.train.optimizer import make_optimizer
from bigtransfer.train.state import fingerprint

MOMENTUM = 0.9  # arXiv 1912.11370, section 3.3; no weight decay, no dropout, nothing frozen

Log = Callable[[int, dict[str, float]], None]
"""`log(step, metrics)`: where curves go."""


@dataclass(frozen=True)
class Cell:
    """One fine-tuning run of the grid."""

    init: str
    examples_per_class: int
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its folder, e.g. `upstream-5-0`."""
        return f"{self.init}-{self.examples_per_class}-{self.seed}"


def finetune(
    pretrained: Path,
    shards_folder: Path,
    output: Path,
    work: Path,
    *,
    task: str,
    inits: tuple[str, ...],
    examples_per_class: tuple[int, ...],
    seeds: tuple[int, ...],
    preset: str,
    overrides: dict[str, Any],
    random_crop: bool,
    flip: bool,
    threads: int,
    log: Log,
) -> dict[str, Any]:
    """Fine-tune every cell and write one folder with a checkpoint per cell and `cells.json`.

    Each cell starts from the upstream weights (or, for `scratch`, from fresh ones of the same
    architecture) with a zero head, and trains all weights by HyperRule's schedule. Finished
    cells are kept under `work`, so an interrupted run goes on with the next cell.

    Args:
        pretrained: Upstream checkpoint.
        shards_folder: Shards of the task's dataset.
        output: Folder to write.
        work: Folder for resumable state.
        task: Name of the task.
        inits: `upstream`, `scratch` or both.
        examples_per_class: Sizes of the balanced few-shot subsets.
        seeds: One subset, one order (and one scratch network) each.
        preset: Of the HyperRule.
        overrides: Values that replace the rule's; None keeps it.
        random_crop: Whether to train on a random crop of the square; without, images are resized
            straight to the crop's size, as the paper does where the position matters.
        flip: Whether to mirror at random.
        threads: Of PyTorch; part of the result.
        log: Receives the mean loss of each finished cell.

    Returns:
        What `cells.json` holds.

    Raises:
        DatasetError: If a class has fewer images than the largest subset needs.
    """
    torch.set_num_threads(threads)
    upstream = read_meta(pretrained)
    shards = open_shards(shards_folder)
    rows = shards.rows("train")
    subsets = {
        (k, seed): rows[_subset(shards, rows, k, seed)]
        for k in examples_per_class
        for seed in seeds
    }
    cells = [Cell(i, k, s) for i in inits for k in examples_per_class for s in seeds]
    rule = _rule_for(shards, upstream["architecture"], preset, overrides, random_crop)
    recipe = {
        "overrides": overrides, "preset": preset, "random_crop": random_crop, "flip": flip,
        "threads": threads,
    }  # fmt: skip
    done = work / fingerprint(recipe=recipe, upstream=upstream["digest"], shards=shards.digest)
    total = sum(rule(cell.examples_per_class).total_steps for cell in cells)
    finished = 0
    with progress(f"fine-tune {task}", total, unit="step") as advance:
        for number, cell in enumerate(cells):
            verdict = rule(cell.examples_per_class)
            if not (done / cell.name).is_dir():
                before = finished
                model, losses = _train(
                    cell, pretrained, upstream, shards, subsets[cell.examples_per_class, cell.seed],
                    verdict, flip, lambda step: advance(before + step, cell.name),  # noqa: B023  # called before the next turn
                )  # fmt: skip
                _keep(done / cell.name, model, cell, task, verdict, upstream, shards)
                log(number, {"final_loss": float(np.mean(losses[-10:]))})
            finished += verdict.total_steps
            advance(finished, cell.name)
    result = {
        "task": task,
        "dataset": shards.summary["dataset"],
        "upstream_digest": upstream["digest"],
        "shards_digest": shards.digest,
        "preset": preset,
        "overrides": overrides,
        "cells": [{**asdict(cell), "folder": cell.name} for cell in cells],
    }
    with new_folder(output) as partial:
        for cell in cells:
            verify_folder(done / cell.name)
            shutil.copytree(done / cell.name, partial / cell.name)
        (partial / "cells.json").write_text(as_json(result), "utf-8")
    shutil.rmtree(done)
    return result


def _rule_for(
    shards: Shards, architecture: str, preset: str, overrides: dict[str, Any], random_crop: bool
) -> Any:
    def rule(examples_per_class: int) -> HyperRule:
        verdict = hyperrule(
            num_examples=examples_per_class * len(shards.classes),
            height=shards.summary["height"],
            width=shards.summary["width"],
            architecture=architecture,
            preset=preset,
        ).overridden(**overrides)
        return verdict if random_crop else replace(verdict, precrop=verdict.crop)

    return rule


def _subset(shards: Shards, rows: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int64]:
    labels = shards.labels(rows)
    counts = np.bincount(labels, minlength=len(shards.classes))
    poorest = int(counts.argmin())
    if counts[poorest] < k:
        raise DatasetError(
            f"dataset {shards.summary['dataset']!r}: class {shards.classes[poorest]!r} has "
            f"{counts[poorest]} train images, but 'examples_per_class' asks for {k}; lower it or "
            "add images"
        )
    return few_shot_rows(labels, k, seed)


def _train(
    cell: Cell,
    pretrained: Path,
    upstream: dict[str, Any],
    shards: Shards,
    rows: NDArray[np.int64],
    rule: HyperRule,
    flip: bool,
    advance: Any,
) -> tuple[ResNetV2, list[float]]:
    if cell.init == "upstream":
        model, _ = load_checkpoint(pretrained, classes=shards.classes)
    else:
        classes = len(shards.classes)
        model = create_model(
            upstream["architecture"], classes, upstream["root"], cell.seed, norm=upstream["norm"]
        )
    losses: list[float] = []

    class Noting(Watcher):
        def after_step(self, step: int, loss: float, rate: float, wished: Sequence[float]) -> None:
            losses.append(loss)
            advance(step)

    squares = Squares(shards, rows, rule.precrop)
    batches = TrainBatches(
        squares, batch_size=rule.batch_size, crop=rule.crop, flip=flip, seed=cell.seed
    )
    optimizer = make_optimizer(model, momentum=MOMENTUM, weight_decay=0.0)
    run_steps(
        model, optimizer, batches, rule.schedule,
        mixup_alpha=rule.mixup_alpha, seed=cell.seed, start=0, watcher=Noting(),
    )  # fmt: skip
    return model, losses


def _keep(
    folder: Path,
    model: ResNetV2,
    cell: Cell,
    task: str,
    rule: HyperRule,
    upstream: dict[str, Any],
    shards: Shards,
) -> None:
    meta = {
        "architecture": upstream["architecture"],
        "root": upstream["root"],
        "norm": upstream["norm"],
        "classes": shards.classes,
        "crop": rule.crop,
        "task": task,
        **asdict(cell),
        "hyperrule": asdict(rule),
        "upstream_digest": upstream["digest"] if cell.init == "upstream" else None,
        "shards_digest": shards.digest,
    }
    write_checkpoint(folder, model, meta)
