"""What a study will take, before its first cell: steps, images, time, disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigtransfer import config
from bigtransfer.artifacts.shards import ShardsSummary
from bigtransfer.config import PretrainParams
from bigtransfer.errors import BigTransferError
from bigtransfer.model.macs import forward_macs
from bigtransfer.model.resnet import create_model
from bigtransfer.storage import read_json
from bigtransfer.storage.home import STAGE_SECONDS
from bigtransfer.study.cells import StudyCell
from bigtransfer.train.schedule import planned_schedule

_FLOAT = 4
_CLASSES = 1000
"""Reckoned with before they are known."""


@dataclass(frozen=True)
class Outlook:
    """What a cell will take."""

    steps: int | None
    """Of upstream training; None: not known before its data are packed."""
    images: int | None
    seconds: float | None
    """Of upstream training, by the last one here; None: there was none."""
    kept: int | None
    """Bytes of its networks in DVC's cache."""
    copied: int | None
    """Bytes of its folder while it runs: networks and shards."""


def outlook(project: Path, cell: StudyCell) -> Outlook:
    """Return what a cell will take, as far as that is known here."""
    recipe = cell.params.pretrain
    facts = _shards(project, recipe.dataset)
    examples = facts.splits.get("train") if facts else recipe.examples
    if not examples:
        return Outlook(None, None, None, None, None)
    classes = facts.classes if facts else _CLASSES
    schedule = planned_schedule(
        recipe.trained_on(examples),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        base_lr=recipe.base_lr,
        warmup_steps=recipe.warmup_steps,
        decay_epochs=recipe.decay_epochs,
    )
    images = schedule.total_steps * recipe.batch_size
    networks = 1 + sum(
        len(cell.params.tasks[task].seeds) * len(cell.params.tasks[task].examples_per_class)
        for task in cell.tasks
    )
    kept = networks * _parameters(recipe, classes) * _FLOAT
    return Outlook(
        schedule.total_steps,
        images,
        _seconds(project, recipe, images, classes),
        kept,
        kept + _bytes_of_shards(project, cell),
    )


def _shards(project: Path, dataset: str) -> ShardsSummary | None:
    try:
        return ShardsSummary.read(project / "artifacts" / "datasets" / dataset / "shards")
    except BigTransferError:
        return None


def _bytes_of_shards(project: Path, cell: StudyCell) -> int:
    names = {cell.params.pretrain.dataset, cell.params.pretrain.probe.dataset}
    names |= {cell.params.tasks[task].dataset for task in cell.tasks}
    folders: Sequence[Path] = [project / "artifacts" / "datasets" / n / "shards" for n in names]
    return sum(f.stat().st_size for own in folders for f in own.rglob("*") if f.is_file())


def _seconds(project: Path, recipe: PretrainParams, images: int, classes: int) -> float | None:
    """Scale the time of the last upstream training here by what there is to compute."""
    try:
        took = float(read_json(project / STAGE_SECONDS)["pretrain"])
        known = config.load(project / "params.yaml").pretrain
    except (BigTransferError, KeyError, ValueError, TypeError):
        return None
    facts = _shards(project, known.dataset)
    if facts is None or not took:
        return None
    before = known.epochs * known.trained_on(facts.splits["train"]) * _macs(known, facts.classes)
    return took * images * _macs(recipe, classes) / before


def _parameters(recipe: PretrainParams, classes: int) -> int:
    import torch

    with torch.device("meta"):
        model = create_model(recipe.architecture, classes, recipe.root, norm=recipe.norm)
    return sum(p.numel() for p in model.parameters())


def _macs(recipe: PretrainParams, classes: int) -> float:
    return float(forward_macs(recipe.architecture, classes, recipe.crop, recipe.root))
