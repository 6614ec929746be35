"""How often a model is right on labelled images from elsewhere: other names, another framing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.data.shards import digest_bits
from bigtransfer.data.sources.listing import ListedImage, Source
from bigtransfer.errors import DatasetError
from bigtransfer.serve.deployed import Deployed
from bigtransfer.serve.prediction import Framing, answers

_TOP = 5


@dataclass(frozen=True)
class Judged:
    """One labelled image, and what the model says of it."""

    image: ListedImage
    predicted: int | None
    """Class; None for an image that cannot be used."""
    probability: float
    right: bool
    in_top5: bool
    fault: str | None
    digest: int | None = None
    """64 bits of that of its file."""


def counted_images(source: Source, counts_as: Mapping[str, frozenset[int]]) -> list[ListedImage]:
    """Return the images to look at: of the test split if there is one, with a name that counts.

    Raises:
        DatasetError: If none is left.
    """
    has_test = any(image.split == "test" for image in source.images)
    found = [
        image
        for image in source.images
        if image.labels[0] in counts_as and (image.split == "test" or not has_test)
    ]
    if not found:
        raise DatasetError(f"{source.address!r} holds no image of a class that counts")
    return found


def judged(
    deployed: Deployed,
    source: Source,
    images: list[ListedImage],
    counts_as: Mapping[str, frozenset[int]],
    batch_size: int,
    device: torch.device,
    framing: Framing,
) -> Iterator[Judged]:
    """Yield what the model says of each image, in order.

    All of its classes compete; an answer is right if it is one of those that the image's name
    counts as.

    Args:
        deployed: On the device.
        source: Where the images are.
        images: Of it, to look at.
        counts_as: Name -> classes.
        batch_size: Images per forward pass.
        device: Where the network is.
        framing: How an image becomes what the network takes.
    """
    listed = {Path(image.path): image for image in images}
    digests: dict[Path, int] = {}

    def read(path: Path) -> bytes:
        image = listed[path]
        data = source.read(image.file, image.offset, image.length)
        digests[path] = digest_bits(hashlib.sha256(data).hexdigest())
        return data

    for answer in answers(deployed, list(listed), batch_size, device, read=read, framing=framing):
        image = listed[answer.path]
        found = _judged(image, counts_as[image.labels[0]], answer.probabilities, answer.fault)
        yield replace(found, digest=digests.get(answer.path))


def _judged(
    image: ListedImage,
    right: frozenset[int],
    probabilities: NDArray[np.float32] | None,
    fault: str | None,
) -> Judged:
    if probabilities is None:
        return Judged(image, None, 0.0, False, False, fault)
    order = np.argsort(-probabilities, kind="stable")[:_TOP].tolist()
    first = order[0]
    return Judged(
        image, first, float(probabilities[first]), first in right, bool(right & set(order)), None
    )
