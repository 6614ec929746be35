"""Two networks in turn: what the other says of a task's validation images, and which is faster."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bigtransfer.artifacts.answers import Answers
from bigtransfer.artifacts.cells import ListedCell
from bigtransfer.data.shards import Shards
from bigtransfer.evaluate.account import validation_answers, validation_order
from bigtransfer.evaluate.scoring import Scorer
from bigtransfer.model.checkpoint import load_tuned, read_trained_on, read_tuned_meta

_ROUNDS, _CALLS = 30, 5


def answers_of(
    checkpoint: Path, shards: Shards, *, seed: int, batch_size: int, device: torch.device
) -> tuple[Answers, int | None]:
    """Return what a network says of a task's validation split.

    Args:
        checkpoint: Of a fine-tuned network with the task's classes.
        shards: Of the task.
        seed: Under which the answers are noted.
        batch_size: Images per forward pass.
        device: To run on.

    Returns:
        Its answers, NaN of an image that it was trained on; and how many those are, None if nobody
        noted them.
    """
    meta = read_tuned_meta(checkpoint)
    cell = ListedCell(
        init=meta.init, examples_per_class=meta.examples_per_class, seed=seed,
        folder=checkpoint.name,
    )  # fmt: skip
    scorer = Scorer(checkpoint.parent, shards, batch_size, device)
    found = validation_answers(shards, scorer, [cell])
    trained_on = read_trained_on(checkpoint)
    if trained_on is None:
        return found, None
    rows = shards.rows("val")[validation_order(shards)]
    seen = np.isin(shards.origin_digests(rows), trained_on)
    scores = np.where(seen, np.nan, found.scores[seed]).astype(np.float32)
    return Answers(found.labels, {seed: scores}), int(seen.sum())


@dataclass(frozen=True)
class Latency:
    """How long one image takes two networks."""

    ratio: float
    """Of the second to the first; median over rounds."""
    milliseconds: tuple[float, float]
    """Median of each."""


def latency_of(first: Path, second: Path, device: torch.device) -> Latency:
    """Time two networks in turn, a batch of one image of the size that each takes.

    Args:
        first: Checkpoint of a fine-tuned network.
        second: Likewise.
        device: To run on.
    """
    models = []
    for folder in (first, second):
        model, meta = load_tuned(folder)
        image = torch.zeros(1, 3, meta.crop, meta.crop, device=device)
        models.append((model.eval().to(device), image))
    rounds = []
    with torch.inference_mode():
        for _ in range(_ROUNDS + 1):
            rounds.append([_seconds(model, image, device) for model, image in models])
    rounds = rounds[1:]  # the first one warms up
    return Latency(
        median(second / first for first, second in rounds),
        (1000 * median(own[0] for own in rounds), 1000 * median(own[1] for own in rounds)),
    )


def _seconds(model: torch.nn.Module, image: torch.Tensor, device: torch.device) -> float:
    def done() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    began = done()
    for _ in range(_CALLS):
        model(image)
    return (done() - began) / _CALLS
