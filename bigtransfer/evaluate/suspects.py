"""Which training images of a model a person should look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.data.batches import Squares, evaluation_images
from bigtransfer.data.decoding_workers import decoding_workers
from bigtransfer.data.shards import Shards
from bigtransfer.metrics.suspicion import Crowd, crowds, doubt, spectral, suspicion
from bigtransfer.model.inference import predict
from bigtransfer.model.resnet import ResNetV2

_BATCH = 64
MOST_IMAGES = 100_000
"""That are looked at; of more, a random part."""
_MOST_NUMBERS = 160_000_000
"""Features of all images together; the head takes some 25 bytes for each."""


@dataclass(frozen=True)
class Suspects:
    """Training images, the most suspicious first."""

    rows: NDArray[np.int64]
    """(N,) of the shards' index."""
    likely: NDArray[np.int64]
    """(N,) class that a head says which was fitted without the image."""
    suspicion: NDArray[np.float64]
    """(N,) in [0, 1]."""
    doubted: int
    crowded: tuple[Crowd, ...] | None
    """None: the features do not suffice to say."""


def find_suspects(
    shards: Shards,
    rows: NDArray[np.int64],
    networks: tuple[ResNetV2, ResNetV2],
    crop: int,
    device: torch.device,
) -> Suspects:
    """Rank training images by what networks' features say of them.

    Args:
        shards: Of the task; an image has one label.
        rows: (M,) of the index, that a model was trained on.
        networks: The one whose features may doubt a label, best one that never saw the labels; and
            the one that was trained on them, in whose features a planted mark shows.
        crop: Side of the square that it takes, pixels.
        device: To run on.
    """
    most = min(MOST_IMAGES, _MOST_NUMBERS // networks[0].num_features)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    workers = decoding_workers(device.type == "cuda")
    squares = Squares(shards, rows, crop, workers=workers)
    frozen, tuned = (
        predict(one.to(device).eval().features, evaluation_images(squares, _BATCH), device)
        for one in networks
    )
    labels, classes = shards.labels(rows), len(shards.classes)
    found = doubt(frozen, labels, classes)
    scores = suspicion(found.margin, spectral(tuned, labels))
    crowded = crowds(labels, found.likely, classes)
    order = np.argsort(-scores, kind="stable")
    return Suspects(
        rows=rows[order],
        likely=found.likely[order],
        suspicion=scores[order],
        doubted=int((found.likely != labels).sum()),
        crowded=None if crowded is None else tuple(crowded),
    )
