"""How a share of a batch is divided into forward passes, and divided again when memory runs out."""

from __future__ import annotations

import math
from collections.abc import Callable

from bigtransfer.errors import InfrastructureError
from bigtransfer.train.compute import ComputeSettings


def micro_batches(images: int, largest: int, size: int | None) -> list[tuple[slice, int]]:
    """Return the micro-batches of a share, and the images that each counts for.

    Args:
        images: Of the share.
        largest: Images of the largest share of all processes. By it, not by this share: a forward
            pass of FSDP and a backward pass of DDP are collectives, so processes with different
            counts would wait for each other for ever. A share that is smaller by an image may
            repeat one, which counts for nothing.
        size: Most images per forward pass; None: all.
    """
    count = -(-largest // (size or largest))
    ends = [number * images // count for number in range(count + 1)]
    return [
        (slice(start, stop), stop - start) if stop > start else (slice(0, 1), 0)
        for start, stop in zip(ends, ends[1:], strict=False)
    ]


def halve(
    compute: ComputeSettings, images: int, ran_out: Callable[[int], None], error: RuntimeError
) -> int:
    """Take half as many images per forward pass from here on; return how many they were.

    Args:
        compute: Its `micro_batch_size` is halved.
        images: Of the share.
        ran_out: Is told the new size, before anything is given up: the next start is to know it.
        error: That memory ran out.

    Raises:
        InfrastructureError: If a single image is too much, or BatchNorm forbids it.
    """
    size = min(compute.micro_batch_size or images, images)
    if size <= 1:
        raise InfrastructureError(
            "memory runs out with a single image; choose a smaller network or crop, or "
            "recompute: units"
        ) from error
    half = math.ceil(size / 2)
    whole, together = compute.together is None, compute.together or 1
    if whole or (together > 1 and (half % together or images % half)):
        raise InfrastructureError(
            "memory runs out, and a smaller forward pass would change BatchNorm's statistics; "
            "choose micro_batch_size or norm_batch yourself, recompute, or a norm of gn and gn_ws"
        ) from error
    compute.micro_batch_size = half
    ran_out(compute.micro_batch_size)
    return size
