"""Images and weights to a report: what `finetune` does once and `sweep` for every task."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bigtransfer.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from bigtransfer.artifacts.cells import Cell
    from bigtransfer.artifacts.report import TaskReport
    from bigtransfer.config import DatasetRules, EvaluateParams, TaskParams

DEFAULTS = Path(__file__).parents[1] / "defaults.yaml"
_EXAMPLE = "--set total_steps=100 --set batch_size=64"


@dataclass(frozen=True)
class Settings:
    """The params of the steps of one transfer."""

    data: DatasetRules
    task: TaskParams
    scoring: EvaluateParams


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
    task = {**defaults["finetune"], **threads, **finetune, "name": name, "dataset": name}
    return Settings(
        config.from_json(json.dumps({**defaults["data"], **data}), config.DatasetRules, source),
        config.from_json(json.dumps(task), config.TaskParams, source),
        config.from_json(json.dumps({**defaults["evaluate"], **threads}), config.EvaluateParams),
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Declare `--set`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a value of section `finetune` of params.yaml in place of the HyperRule's, e.g. "
        + _EXAMPLE,
    )


def settings_in(texts: list[str]) -> dict[str, object]:
    """Return what was typed behind `--set`.

    Raises:
        ConfigError: If one is not KEY=VALUE.
    """
    from bigtransfer import config

    found: dict[str, object] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r}: write KEY=VALUE, e.g. {_EXAMPLE}")
        found[key] = config.typed_value(value)
    return found


def require_weights(weights: Path) -> None:
    """Refuse weights that are not there.

    Raises:
        CheckpointError: Says how to get some.
    """
    if not weights.exists():
        raise CheckpointError(
            f"--weights {str(weights)!r} does not exist; `bigtransfer weights fetch BiT-M-R50x1` "
            "fetches a published file"
        )


@dataclass(frozen=True)
class Transferred:
    """What became of one task."""

    report: TaskReport
    splits: Mapping[str, int]
    """Images of each."""


def transfer(
    images: Path,
    upstream: Path,
    folder: Path,
    settings: Settings,
    on_cell: Callable[[Cell, dict[str, float]], None] = lambda cell, figures: None,
) -> Transferred:
    """Check and pack the images, fine-tune, evaluate, and write a page.

    What is there already is not made again: networks of the same images, weights and params.

    Args:
        images: Dataset.
        upstream: Checkpoint to start from.
        folder: To write everything into.
        settings: The params.
        on_cell: Receives each network's cell and validation scores when it is finished.

    Returns:
        What was found.

    Raises:
        BigTransferError: One line that says what is wrong with the input.
        GateError: If the images should not be used as they are.
    """
    from bigtransfer.data.packing import write_shards
    from bigtransfer.data.shard_plan import packing_of
    from bigtransfer.data.shards import describe_shards
    from bigtransfer.data.validation import validate
    from bigtransfer.evaluate.task import Outputs, evaluate
    from bigtransfer.report.summary import write_report
    from bigtransfer.train.finetune import finetune, is_done

    rules, task, name = settings.data, settings.task, settings.task.name
    print(f"1 check      {images}", flush=True)
    manifest, shards = folder / "manifest.parquet", folder / "shards"
    counts = validate(images, name, rules, manifest_path=manifest, report=folder / "validation")
    splits = ", ".join(f"{split} {n:,}" for split, n in counts.splits.items())
    print(f"             {counts.images:,} images of {counts.classes} classes ({splits})")
    print(f"2 pack       {shards}", flush=True)
    write_shards(images, manifest, shards, packing_of(rules))
    digest, _ = describe_shards(shards)
    print(f"             sha256 {digest[:16]}")
    cells = len(task.inits) * len(task.examples_per_class) * len(task.seeds)
    print(f"3 fine-tune  {upstream}, {cells} networks", flush=True)
    checkpoints = folder / "checkpoints"
    if is_done(checkpoints, task, upstream, shards):
        print("             they are there already")
    else:
        finetune(task, upstream, shards, checkpoints, folder / ".work", _no_log, on_cell)
    print("4 evaluate", flush=True)
    outputs = Outputs(
        folder / "report",
        folder / "metrics.json",
        folder / "cells.csv",
        folder / "predictions.csv",
    )
    report = evaluate(settings.scoring, checkpoints, shards, outputs, _no_log)
    write_report(
        folder / "page",
        pretrain=None,
        datasets={name: folder},
        evaluations={name: folder},
        registrations={},
        params=json.dumps(task.model_dump(mode="json"), indent=2),
        commit="",
    )
    return Transferred(report, counts.splits)


def _no_log(step: int, values: dict[str, float]) -> None:
    """Tell nobody: there is no project, hence no tracker."""
