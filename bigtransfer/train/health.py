"""How a training is doing: accuracy on the validation split, and few-shot accuracy of the features.

Each process looks at its share of the images, in the same order for any number of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from bigtransfer.data.batches import Squares, evaluation_images
from bigtransfer.data.decoding_workers import DecodingWorkers
from bigtransfer.data.shards import Shards
from bigtransfer.errors import DatasetError
from bigtransfer.metrics.accuracy import topk_hits
from bigtransfer.model.inference import predicted
from bigtransfer.model.resnet import ResNetV2
from bigtransfer.train.group import Group, lost_peers
from bigtransfer.train.probe import few_shot_accuracy, probe_subsets

_BATCH = 256
_MOST_TESTED = 10_000
"""Validation images that the probe is tested on, at most, spread over the split."""
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ProbePlan:
    """What the few-shot probe tries."""

    examples_per_class: tuple[int, ...]
    """Empty: there is no probe."""
    seeds: tuple[int, ...]
    """Of the subsets; a subset for each."""


class Health:
    """Looks at a network; made once for a run."""

    def __init__(
        self,
        shards: Shards,
        crop: int,
        probe: ProbePlan,
        probe_shards: Shards,
        group: Group,
        *,
        workers: DecodingWorkers | None = None,
    ) -> None:
        """Open the images.

        Args:
            shards: Of the upstream dataset; needs the split val.
            crop: Side that images are resized to.
            probe: What the probe is to try.
            probe_shards: Of the probe's dataset; needs the splits train and val.
            group: The processes.
            workers: That decode; see `Squares`.

        Raises:
            DatasetError: If a split is missing, or has too few images for the probe.
        """
        self._group = group
        rows = shards.rows("val")
        self._images = len(rows)
        open_squares = partial(Squares, side=crop, workers=workers)
        self._val = open_squares(shards, rows[group.share(len(rows))])
        self._probe = None
        if probe.examples_per_class:
            self._probe = _Probe(probe, probe_shards, open_squares, group)

    def look(self, model: ResNetV2, between: Callable[[], None]) -> dict[str, float]:
        """Return `val_top1` and `probe_top1_<k>shot` (the mean over its seeds), in [0, 1].

        Args:
            model: Being trained.
            between: Called between batches; may raise to give up.
        """
        device = self._group.device
        hits, start = 0, 0
        for logits in predicted(model, evaluation_images(self._val, _BATCH), device):
            between()
            labels = self._val.labels[start : start + len(logits)]
            hits += int(topk_hits(logits, labels, 1).sum())
            start += len(logits)
        result = {"val_top1": self._group.sum([hits])[0] / self._images}
        if self._probe is not None:
            result |= self._probe.accuracies(model, between)
        return result


class _Probe:
    """The few-shot subsets on which frozen features are tried."""

    def __init__(
        self,
        wanted: ProbePlan,
        shards: Shards,
        open_squares: Callable[[Shards, NDArray[np.int64]], Squares],
        group: Group,
    ) -> None:
        self._group = group
        if shards.summary.multi_label:
            raise DatasetError(
                f"'pretrain.probe' needs one label per image, and dataset "
                f"{shards.summary.dataset!r} has several; name another, or set its "
                "examples_per_class to []"
            )
        rows, tested = shards.rows("train"), shards.rows("val")
        labels = shards.labels(rows)
        try:
            subsets = probe_subsets(labels, wanted.examples_per_class, wanted.seeds)
        except ValueError as error:
            raise DatasetError(
                f"'pretrain.probe' wants {max(wanted.examples_per_class)} images of every class of "
                f"dataset {shards.summary.dataset!r}, but {error}; lower its examples_per_class"
            ) from error
        used = np.unique(np.concatenate(list(subsets.values())))
        self._subsets = {key: np.searchsorted(used, found) for key, found in subsets.items()}
        self._labels = labels[used]
        if len(tested) > _MOST_TESTED:
            tested = tested[np.linspace(0, len(tested) - 1, _MOST_TESTED).astype(np.int64)]
        self._tested_labels = shards.labels(tested)
        self._few = open_squares(shards, rows[used][group.share(len(used))])
        self._tested = open_squares(shards, tested[group.share(len(tested))])

    def accuracies(self, model: ResNetV2, between: Callable[[], None]) -> dict[str, float]:
        few = self._features(model, self._few, len(self._labels), between)
        tested = self._features(model, self._tested, len(self._tested_labels), between)
        found: dict[int, list[float]] = {}
        for (k, _), positions in self._subsets.items():
            found.setdefault(k, []).append(
                few_shot_accuracy(
                    few[positions], self._labels[positions], tested, self._tested_labels
                )
            )
        return {f"probe_top1_{k}shot": float(np.mean(each)) for k, each in found.items()}

    def _features(
        self, model: ResNetV2, squares: Squares, total: int, between: Callable[[], None]
    ) -> Floats:
        """Return the features of all images, in order, in every process."""
        parts = []
        images = evaluation_images(squares, _BATCH)
        for features in predicted(model.features, images, self._group.device):
            between()
            parts.append(features)
        own = np.concatenate(parts) if parts else np.empty((0, model.num_features), np.float32)
        if self._group.alone:
            return own
        # Shares differ by one image: each writes its own into zeros, and they are summed.
        whole = torch.zeros(total, model.num_features)
        whole[self._group.share(total)] = torch.from_numpy(own)
        together: Tensor = whole.to(self._group.device)
        with lost_peers():
            dist.all_reduce(together)
        result: Floats = together.cpu().numpy()
        return result
