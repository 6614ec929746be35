"""`bigtransfer finetune`: from a folder of images and weights to a tested model, in one command."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtransfer.command.weights import to_checkpoint
from bigtransfer.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from bigtransfer.config import DatasetRules, EvaluateParams, TaskParams

_RUNS = Path("runs")
_EXAMPLE = "--set total_steps=100 --set batch_size=64"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Check the images, pack them, fine-tune the weights by the BiT-HyperRule with several "
        "seeds, and write a report. The same again goes on where it was stopped."
    )
    parser.add_argument(
        "images", type=Path, metavar="FOLDER", help="a folder per class, or a table"
    )
    parser.add_argument(
        "--weights", type=Path, required=True, metavar="W",
        help="what to start from: a published file (.npz; `bigtransfer weights fetch`) or an "
        "upstream checkpoint folder",
    )  # fmt: skip
    parser.add_argument(
        "--to", type=Path, metavar="RUN", help="folder to write (default: runs/<name of FOLDER>)"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="runs; the median counts (default: 3)"
    )
    parser.add_argument(
        "--quarantine", type=float, default=0.0, metavar="SHARE",
        help="leave out so large a share of unusable files, e.g. 0.01 (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="a value of section `finetune` of params.yaml in place of the HyperRule's, e.g. "
        + _EXAMPLE,
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Do it all.

    Raises:
        BigTransferError: One line that says what is wrong with the input.
        GateError: If the images should not be used as they are.
    """
    from bigtransfer.data.packing import write_shards
    from bigtransfer.data.shards import describe_shards
    from bigtransfer.data.validation import asked_of, validate
    from bigtransfer.evaluate.report import write_report
    from bigtransfer.evaluate.table import METRICS
    from bigtransfer.evaluate.task import evaluate
    from bigtransfer.storage import lock
    from bigtransfer.train.finetune import finetune

    images: Path = arguments.images
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", images.resolve().stem).strip("-_") or "images"
    folder: Path = arguments.to or _RUNS / name
    rules, task, scoring = _params(arguments, name)
    if not images.exists():
        raise ConfigError(f"FOLDER {str(images)!r} does not exist; give a folder of images")
    if not arguments.weights.exists():
        raise CheckpointError(
            f"--weights {str(arguments.weights)!r} does not exist; `bigtransfer weights fetch "
            "BiT-M-R50x1` fetches a published file"
        )
    with lock(folder / "lock", f"the run in {str(folder)!r}"):
        print(f"1 check      {images}", flush=True)
        manifest, validation = folder / "manifest.parquet", folder / "validation"
        counts = validate(
            images, name, manifest_path=manifest, report=validation, asked=asked_of(rules),
            params=rules.model_dump(mode="json"),
        )  # fmt: skip
        splits = ", ".join(f"{split} {n:,}" for split, n in counts["splits"].items())
        print(f"             {counts['images']:,} images of {counts['classes']} classes ({splits})")
        print(f"2 pack       {folder / 'shards'}", flush=True)
        write_shards(
            images, manifest, folder / "shards", shard_bytes=rules.shard_bytes,
            short_side=rules.short_side_pixels, seed=rules.seed,
        )  # fmt: skip
        digest, _ = describe_shards(folder / "shards")
        print(f"             sha256 {digest[:16]}")
        upstream = _upstream(arguments.weights, folder)
        print(f"3 fine-tune  {arguments.weights}, {len(task.seeds)} seeds", flush=True)
        checkpoints = folder / "checkpoints"
        if not _is_done(checkpoints, task, upstream, digest):
            finetune(task, upstream, folder / "shards", checkpoints, folder / ".work", _no_log)
        print("4 evaluate", flush=True)
        result = evaluate(
            scoring, checkpoints, folder / "shards", folder / "report",
            folder / "metrics.json", folder / "cells.csv", folder / "predictions.csv", _no_log,
        )  # fmt: skip
        write_report(
            folder / "page", pretrain=None, datasets={name: folder}, evaluations={name: folder},
            registrations={}, params=json.dumps(task.model_dump(mode="json"), indent=2), commit="",
        )  # fmt: skip
        model = _keep_model(folder, checkpoints / result["chosen"]["folder"])
    for row in result["rows"]:
        print(
            f"             test {METRICS[row['metric']]} {100 * row['median']:.1f} % (median of "
            f"{row['seeds']}; {100 * row['min']:.1f} to {100 * row['max']:.1f})"
        )
    print(f"\nMade\n  {model}\n  {folder / 'page' / 'index.html'}")
    print(f"\nNext\n  bigtransfer predict {model} IMAGES\n  bigtransfer export {model} {name}.onnx")


def _params(
    arguments: argparse.Namespace, name: str
) -> tuple[DatasetRules, TaskParams, EvaluateParams]:
    """Return the params of the three steps.

    Raises:
        ConfigError: One line per fault.
    """
    from bigtransfer import config
    from bigtransfer.command.data import DEFAULTS

    defaults = config.read_yaml(DEFAULTS)
    data = defaults["data"]
    if arguments.quarantine:
        data = {**data, "on_bad": "quarantine", "bad_budget": arguments.quarantine}
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds is {arguments.seeds}; at least one run is needed")
    given = dict(_setting(text) for text in arguments.settings)
    task = {
        "seeds": list(range(arguments.seeds)), "threads": os.cpu_count() or 1, **given,
        "name": name, "dataset": name,
    }  # fmt: skip
    threads = {"threads": os.cpu_count() or 1}
    return (
        config.from_json(json.dumps(data), config.DatasetRules),
        config.from_json(json.dumps({**defaults["finetune"], **task}), config.TaskParams, "--set"),
        config.from_json(json.dumps({**defaults["evaluate"], **threads}), config.EvaluateParams),
    )


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text!r}: write KEY=VALUE, e.g. {_EXAMPLE}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _upstream(weights: Path, folder: Path) -> Path:
    """Return the checkpoint folder to start from; a published file is made one."""
    if weights.is_dir():
        return weights
    target = folder / "upstream"
    to_checkpoint(weights, target, None)
    return target


def _is_done(checkpoints: Path, task: TaskParams, upstream: Path, shards_digest: str) -> bool:
    """Say whether these very networks are there already."""
    from bigtransfer.storage import digest_of, read_json
    from bigtransfer.train.finetune import recipe_of

    if not (checkpoints / "cells.json").is_file():
        return False
    listed = read_json(checkpoints / "cells.json")
    same = (
        listed["recipe"] == json.loads(json.dumps(recipe_of(task)))
        and listed["shards_digest"] == shards_digest
        and listed["upstream_digest"] == digest_of(upstream)
        and [cell["seed"] for cell in listed["cells"]] == list(task.seeds)
    )
    if same:
        print("             they are there already")
    return same


def _keep_model(folder: Path, chosen: Path) -> Path:
    from bigtransfer.storage import new_folder

    with new_folder(folder / "model", sealed=False) as partial:
        shutil.copytree(chosen, partial, dirs_exist_ok=True)
    return folder / "model"


def _no_log(step: int, values: dict[str, float]) -> None:
    """Tell nobody: there is no project, hence no tracker."""
