"""`bigtransfer evaluate`: how often a model is right on labelled images from elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigtransfer.api.models import MODEL_HELP, add_device, checkpoint_at
from bigtransfer.errors import ConfigError, DatasetError
from bigtransfer.progress import tracked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bigtransfer.serve.labelled import Judged

_BATCH = 32
_TOP = 5
"""Of so few classes, the right one is always among the first five."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Nothing is trained. ObjectNet, as the paper does: `bigtransfer evaluate MODEL "
        "objectnet-1.0/images --class-map objectnet-1.0/mappings --border 2 --short-side 512 "
        "--crop 480`."
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "images",
        type=Path,
        metavar="IMAGES",
        help="a folder per class, or another layout that `data check` reads; of splits, test",
    )
    parser.add_argument(
        "--class-map",
        type=Path,
        metavar="FILE",
        help="YAML or JSON, `name: class` or `name: [class, …]`: which answers are right for a "
        "name; names that are not in it are left out. Or ObjectNet's folder `mappings` "
        "(default: names are the model's classes)",
    )
    parser.add_argument(
        "--short-side",
        type=int,
        metavar="N",
        help="resize so that the shorter side is N and cut the middle, in place of squeezing the "
        "whole image into a square",
    )
    parser.add_argument(
        "--crop", type=int, metavar="N", help="side of the square (default: the model's own)"
    )
    parser.add_argument(
        "--border",
        type=int,
        default=0,
        metavar="N",
        help="cut off so many pixels all around first (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="CSV file, a row per image")
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Look at every image and say how many are recognised.

    Raises:
        BigTransferError: If the model, the map or the images cannot be used.
    """
    from bigtransfer.artifacts.decoding import as_stored_line
    from bigtransfer.data.sources.opening import open_source
    from bigtransfer.model.checkpoint import read_trained_on
    from bigtransfer.model.processor import device_named
    from bigtransfer.serve.class_map import read_class_map, same_names
    from bigtransfer.serve.deployed import load_any
    from bigtransfer.serve.labelled import counted_images, judged
    from bigtransfer.serve.prediction import Framing
    from bigtransfer.storage import as_csv, write_text

    source = open_source(arguments.images)
    device = device_named(arguments.device)
    checkpoint = checkpoint_at(arguments.model)
    deployed, meta = load_any(checkpoint)
    if line := as_stored_line(str(arguments.model), meta.decode):
        print(line, flush=True)
    for note in source.notes:
        print(note, flush=True)
    if source.multi_label or deployed.multi_label:
        raise ConfigError("several labels per image: only top-1 and top-5 are counted here")
    framing = Framing(arguments.crop or deployed.crop, arguments.short_side, arguments.border)
    classes = meta.classes
    counts_as = (
        read_class_map(arguments.class_map, classes)
        if arguments.class_map
        else same_names(source.labels, classes)
    )
    images = counted_images(source, counts_as)
    names = {image.labels[0] for image in images}
    print(
        f"{len(images):,} images of {len(names):,} names"
        + (
            f"; {len(source.labels) - len(names):,} names are left out"
            if len(names) < len(source.labels)
            else ""
        ),
        flush=True,
    )
    found = list(
        tracked(
            judged(deployed.to(device), source, images, counts_as, _BATCH, device, framing),
            "evaluate",
            len(images),
            unit="image",
        )
    )
    if arguments.out:
        rows = [
            {
                "path": one.image.path,
                "actual": one.image.labels[0],
                "predicted": "" if one.predicted is None else classes[one.predicted],
                "probability": f"{one.probability:.4f}",
                "right": int(one.right),
                "in_top5": int(one.in_top5),
                "fault": one.fault or "",
            }
            for one in found
        ]
        write_text(arguments.out, as_csv(rows))
        print(f"{arguments.out}: {len(rows):,} rows")
    _sum_up(found, arguments.images, len(classes))
    _tell_what_was_trained_on(found, read_trained_on(checkpoint))


def _sum_up(found: Iterable[Judged], place: Path, classes: int) -> None:
    usable = [one for one in found if one.fault is None]
    faults = [one for one in found if one.fault is not None]
    for one in faults[:3]:
        print(f"  {one.image.path}: {one.fault}")
    if faults:
        print(f"{len(faults):,} images cannot be used and do not count")
    if not usable:
        raise DatasetError(f"none of the images in {str(place)!r} could be used")
    print(f"{_scores(usable, classes)} of {len(usable):,} images")


def _scores(found: Sequence[Judged], classes: int) -> str:
    top1, top5 = (
        100 * sum(getattr(one, name) for one in found) / len(found) for name in ("right", "in_top5")
    )
    return f"top-1 {top1:.1f} %" + (f", top-5 {top5:.1f} %" if classes > _TOP else "")


def _tell_what_was_trained_on(
    found: Iterable[Judged], trained_on: NDArray[np.uint64] | None
) -> None:
    """Say how many of the images the network has seen already, and what it makes of the others."""
    if trained_on is None:
        return
    known = set(trained_on.tolist())
    usable = [one for one in found if one.fault is None]
    new = [one for one in usable if one.digest not in known]
    seen = len(usable) - len(new)
    if not seen:
        return
    if not new:
        print("it was trained on all of these images: that says nothing of new ones")
        return
    right = 100 * sum(one.right for one in new) / len(new)
    print(
        f"it was trained on {seen:,} of these images: without them top-1 is {right:.1f} % of "
        f"{len(new):,}"
    )
