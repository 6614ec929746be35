"""Images and weights to a report: what `finetune` does once and `sweep` for every task."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bigtransfer.errors import CheckpointError, ConfigError
from bigtransfer.progress import counted

if TYPE_CHECKING:
    from bigtransfer.api.run_folder import Claimed
    from bigtransfer.artifacts.cells import Cell
    from bigtransfer.artifacts.report import TaskReport
    from bigtransfer.config import DatasetRules, EvaluateParams, TaskParams

DEFAULTS = Path(__file__).parents[1] / "defaults.yaml"
SEEDS = 3
"""Networks of a fine-tuning; the median counts."""
LONGEST_HOURS = 1
"""What takes longer on a CPU, for one task, is begun by those alone who agree to it."""
QUICK = {"preset": "quick", "precision": "auto"}
"""Over section `finetune`: a linear head on frozen features."""
_OF_A_SCHEDULE = (
    "preset", "total_steps", "warmup_steps", "decay_steps", "batch_size", "base_lr", "precrop",
    "mixup_alpha", "random_crop", "weight_decay",
)  # fmt: skip
"""Values of section `finetune` that have no part in the quick way."""


@dataclass(frozen=True)
class Settings:
    """The params of the steps of one transfer."""

    data: DatasetRules
    task: TaskParams
    scoring: EvaluateParams

    def called(self, name: str) -> Settings:
        """Return the same for a task of another name.

        In params.yaml a name is ASCII, because DVC and KFP name stages by it; a folder's own name,
        in any script, is as good here.
        """
        return replace(self, task=self.task.model_copy(update={"name": name, "dataset": name}))


def settings_of(
    name: str, data: Mapping[str, object], finetune: Mapping[str, object], source: str
) -> Settings:
    """Return the defaults with some values of the user's laid over them.

    Args:
        name: Of the task.
        data: Over section `data`.
        finetune: Over section `finetune`.
        source: Where the values were written, for messages.

    Raises:
        ConfigError: One line per fault.
    """
    from bigtransfer import config

    defaults = config.read_yaml(DEFAULTS)
    threads = {"threads": os.cpu_count() or 1}
    task = {**defaults["finetune"], **threads, **finetune, "name": "task", "dataset": "task"}
    settings = Settings(
        config.from_json(json.dumps({**defaults["data"], **data}), config.DatasetRules, source),
        config.from_json(json.dumps(task), config.TaskParams, source),
        config.from_json(json.dumps({**defaults["evaluate"], **threads}), config.EvaluateParams),
    )
    return settings.called(name)


def quick_over(values: Mapping[str, object]) -> dict[str, object]:
    """Return values of section `finetune` for the quick way.

    Raises:
        ConfigError: If one of them has no part in it.
    """
    if bad := [name for name in _OF_A_SCHEDULE if name in values]:
        raise ConfigError(
            f"{', '.join(bad)} cannot be set together with quick, which fits a linear head and has "
            "no schedule; leave out one of the two"
        )
    return {**QUICK, **values}


def require_weights(weights: Path) -> None:
    """Refuse weights that are not there, or that are none, before anything else is done.

    Raises:
        CheckpointError: Says how to get some.
    """
    from bigtransfer.model.checkpoint import read_meta
    from bigtransfer.model.published import describe_npz

    if not weights.exists():
        raise CheckpointError(
            f"weights {str(weights)!r} do not exist; `bigtransfer weights fetch BiT-M-R50x1` "
            "fetches a published file"
        )
    if weights.is_file():
        describe_npz(weights)
    else:
        read_meta(weights)


@dataclass(frozen=True)
class Transferred:
    """What became of one task."""

    report: TaskReport
    splits: Mapping[str, int]
    """Images of each."""


def transfer(
    images: Path,
    weights: Path,
    folder: Path,
    settings: Settings,
    on_cell: Callable[[Cell, dict[str, float]], None] = lambda cell, figures: None,
    *,
    to: Path | None = None,
    agreed: bool = True,
) -> Transferred:
    """Check and pack the images, fine-tune, evaluate, and write a page.

    What is there already is not made again: networks of the same images, weights and params.

    Args:
        images: Dataset.
        weights: Checkpoint to start from, or a published file.
        folder: To write everything into; it belongs to these images from then on.
        settings: The params.
        on_cell: Receives each network's cell and validation scores when it is finished.
        to: What `--to` named, if that is not `folder` itself.
        agreed: Whether somebody agreed to it however long it takes.

    Returns:
        What was found.

    Raises:
        BigTransferError: One line that says what is wrong with the input.
        GateError: If the images should not be used as they are.
    """
    from bigtransfer.api.run_folder import claim
    from bigtransfer.model.conversion import as_checkpoint
    from bigtransfer.report.summary import write_report

    print(f"1 check      {images}", flush=True)
    claimed = claim(images, folder, settings.task.name, settings.data, to or folder)
    counts, settings = claimed.counts, settings.called(claimed.run.name)
    splits = ", ".join(f"{split} {n:,}" for split, n in counts.splits.items())
    print(f"             {counted(counts.images, 'image')} of {counts.classes} classes ({splits})")
    upstream = as_checkpoint(weights, folder / "upstream")
    _pack(images, claimed, settings)
    _finetune(settings.task, upstream, folder, on_cell, agreed)
    report = _evaluate(settings, folder)
    name = settings.task.name
    write_report(
        folder / "page",
        pretrain=None,
        datasets={name: folder},
        evaluations={name: folder},
        registrations={},
        params=json.dumps(settings.task.model_dump(mode="json"), indent=2, ensure_ascii=False),
        commit="",
    )
    return Transferred(report, counts.splits)


def _pack(images: Path, claimed: Claimed, settings: Settings) -> None:
    """Write the shards, if they are not there."""
    from bigtransfer.data.packing import write_shards
    from bigtransfer.data.shard_plan import packing_of
    from bigtransfer.data.shards import describe_shards

    shards = claimed.folder / "shards"
    print(f"2 pack       {shards}", flush=True)
    digest = claimed.packed()
    if digest is not None:
        print("             they are there already")
    else:
        manifest = claimed.folder / "manifest.parquet"
        write_shards(images, manifest, shards, packing_of(settings.data))
        digest, _ = describe_shards(shards)
        claimed.note_packed(digest)
    print(f"             sha256 {digest[:16]}")


def _finetune(
    task: TaskParams,
    upstream: Path,
    folder: Path,
    on_cell: Callable[[Cell, dict[str, float]], None],
    agreed: bool,
) -> None:
    from bigtransfer.train.finetune import finetune, is_done

    cells = len(task.inits) * len(task.examples_per_class) * len(task.seeds)
    print(f"3 fine-tune  {upstream}, {counted(cells, 'network')}", flush=True)
    checkpoints = folder / "checkpoints"
    if is_done(checkpoints, task, upstream, folder / "shards"):
        print("             they are there already")
        return
    _tell_what_differs(checkpoints, task, upstream)
    finetune(
        task,
        upstream,
        folder / "shards",
        checkpoints,
        folder / ".work",
        _no_log,
        on_cell,
        longest_seconds=None if agreed else 3600 * LONGEST_HOURS,
        notes_effort=True,
    )


def _tell_what_differs(checkpoints: Path, task: TaskParams, upstream: Path) -> None:
    """Say that networks will be replaced which somebody made in another way."""
    from bigtransfer.artifacts.cells import Cells
    from bigtransfer.storage import digest_of
    from bigtransfer.train.finetune import recipe_of

    if not (checkpoints / Cells.FILE).is_file():
        return
    before = Cells.read(checkpoints)
    differs = [
        what
        for what, same in (
            ("weights", before.upstream_digest == digest_of(upstream)),
            ("params", before.recipe == recipe_of(task)),
        )
        if not same
    ]
    if differs:
        print(
            f"             those of the last run here are of other {' and '.join(differs)}: they "
            "stay until the new ones are complete (--to keeps both)",
            flush=True,
        )


def _evaluate(settings: Settings, folder: Path) -> TaskReport:
    from bigtransfer.evaluate.task import Outputs, evaluate

    print("4 evaluate", flush=True)
    outputs = Outputs(
        folder / "report",
        folder / "metrics.json",
        folder / "cells.csv",
        folder / "predictions.csv",
    )
    return evaluate(settings.scoring, folder / "checkpoints", folder / "shards", outputs, _no_log)


def _no_log(step: int, values: dict[str, float]) -> None:
    """Tell nobody: there is no project, hence no tracker."""
