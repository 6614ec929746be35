"""Whether a model answers with weights in bfloat16: half the memory, twice the speed, some digits.

It is tried once, when the model is written: on its validation images. Whoever predicts takes it
where the processor multiplies bfloat16, and nothing that counts was lost.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.artifacts.calibration import MultiLabelCalibration
from bigtransfer.artifacts.weights import Narrowed, TunedMeta
from bigtransfer.data.batches import Squares, evaluation_batches
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import ConfigError
from bigtransfer.metrics.multilabel import multi_hot
from bigtransfer.model.inference import to_network
from bigtransfer.model.processor import multiplies_bfloat16
from bigtransfer.serve.deployed import Deployed, load_deployed
from bigtransfer.storage import seal

PRECISIONS = ("auto", "float32", "bfloat16")
_MOST = 1000
"""Validation images that are looked at, at most, spread over the split."""
_BATCH = 16


def note_bfloat16(folder: Path, shards: Path) -> None:
    """Try bfloat16 on the validation images, and note in the model's `meta.json` what it changes.

    Args:
        folder: Fine-tuned checkpoint; it is sealed anew.
        shards: That it was trained on. Without validation images nothing is noted.
    """
    deployed, meta = load_deployed(folder)
    opened = open_shards(shards)
    rows = opened.rows("val")
    if not len(rows):
        return
    if len(rows) > _MOST:
        rows = rows[np.linspace(0, len(rows) - 1, _MOST).astype(np.int64)]
    squares = Squares(opened, rows, meta.crop)
    wide = _probabilities(deployed, squares)
    narrow = _probabilities(deployed.narrow(), squares)
    own, other = (_answers(found, meta) for found in (narrow, wide))
    truth = _truth(squares.labels, meta)
    found = Narrowed(
        images=len(rows),
        top1=float(_equal(own, truth).mean()),
        top1_float32=float(_equal(other, truth).mean()),
        differ=1 - float(_equal(own, other).mean()),
    )
    meta.model_copy(update={"bfloat16": found}).write(folder)
    seal(folder)


def narrows(wanted: str, meta: TunedMeta, device: torch.device) -> bool:
    """Say whether a model is to answer with weights in bfloat16.

    Args:
        wanted: `auto`, `float32` or `bfloat16`.
        meta: Of the model.
        device: That it runs on.

    Raises:
        ConfigError: If `wanted` is something else.
    """
    if wanted not in PRECISIONS:
        raise ConfigError(f"precision is {wanted!r}; choose one of {', '.join(PRECISIONS)}")
    if wanted != "auto":
        return wanted == "bfloat16"
    tried = meta.bfloat16
    return tried is not None and tried.is_harmless and multiplies_bfloat16(device)


def _probabilities(deployed: Deployed, squares: Squares) -> NDArray[np.float32]:
    found = []
    with torch.inference_mode():
        for batch in evaluation_batches(squares, _BATCH):
            found.append(deployed.probabilities(to_network(batch.images)).numpy())
    return np.concatenate(found)


def _answers(probabilities: NDArray[np.float32], meta: TunedMeta) -> NDArray[np.int64]:
    """Return an answer per image: (N, 1), or (N, C) of zeros and ones."""
    if isinstance(meta.calibration, MultiLabelCalibration):
        named = probabilities >= np.array(meta.calibration.thresholds, np.float32)
        return named.astype(np.int64)
    best: NDArray[np.int64] = probabilities.argmax(axis=1)[:, None]
    return best


def _truth(labels: NDArray[np.int64], meta: TunedMeta) -> NDArray[np.int64]:
    if isinstance(meta.calibration, MultiLabelCalibration):
        return multi_hot(labels, len(meta.classes)).astype(np.int64)
    return labels[:, None]


def _equal(some: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (some == others).all(axis=1)
    return same
