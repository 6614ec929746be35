"""`bigtransfer evaluate`: how often a model is right on labelled images from elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bigtransfer.api.models import MODEL_HELP, checkpoint_at
from bigtransfer.command.arguments import add_device

if TYPE_CHECKING:
    from bigtransfer.api.evaluation import Evaluation

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
    from bigtransfer.api.evaluation import evaluate_on
    from bigtransfer.storage import as_csv, write_text

    found = evaluate_on(
        checkpoint_at(arguments.model),
        arguments.images,
        device=arguments.device,
        class_map=arguments.class_map,
        short_side=arguments.short_side,
        crop=arguments.crop,
        border=arguments.border,
        name=str(arguments.model),
    )
    if arguments.out:
        rows = [
            {
                "path": one.image.path,
                "actual": one.image.labels[0],
                "predicted": "" if one.predicted is None else found.classes[one.predicted],
                "probability": f"{one.probability:.4f}",
                "right": int(one.right),
                "in_top5": int(one.in_top5),
                "fault": one.fault or "",
            }
            for one in found.images
        ]
        write_text(arguments.out, as_csv(rows))
        print(f"{arguments.out}: {len(rows):,} rows")
    _sum_up(found)


def _sum_up(found: Evaluation) -> None:
    faults = [one for one in found.images if one.fault is not None]
    for one in faults[:3]:
        print(f"  {one.image.path}: {one.fault}")
    if faults:
        print(f"{len(faults):,} images cannot be used and do not count")
    top5 = f", top-5 {100 * found.top5:.1f} %" if len(found.classes) > _TOP else ""
    print(f"top-1 {100 * found.top1:.1f} %{top5} of {len(found.usable):,} images")
    new = len(found.usable) - (found.seen or 0)
    if not found.seen:
        return
    if found.top1_of_new is None:
        print("it was trained on all of these images: that says nothing of new ones")
        return
    print(
        f"it was trained on {found.seen:,} of these images: without them top-1 is "
        f"{100 * found.top1_of_new:.1f} % of {new:,}"
    )
