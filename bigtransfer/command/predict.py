"""`bigtransfer predict`: what a fine-tuned network sees in image files."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bigtransfer.api.models import MODEL_HELP, checkpoint_at
from bigtransfer.command.arguments import add_device
from bigtransfer.errors import DatasetError
from bigtransfer.progress import tracked

if TYPE_CHECKING:
    from bigtransfer.artifacts.weights import TunedMeta

_BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGES", help="image files, or folders of them"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="CSV file to write, a row per image (default: a table on the terminal)",
    )
    parser.add_argument(
        "--top", type=int, default=1, metavar="K", help="guesses per image (default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="of the weights; auto: bfloat16 where the processor multiplies it and the model's "
        "validation images were answered as well (default: %(default)s)",
    )
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Look at every image; one that cannot be read says so in its row.

    Raises:
        BigTransferError: If the model or a place cannot be used, or no image could be read.
    """
    from bigtransfer.artifacts.decoding import as_stored_line
    from bigtransfer.model.processor import device_named
    from bigtransfer.serve.deployed import load_deployed
    from bigtransfer.serve.precision import narrows
    from bigtransfer.serve.prediction import answers, as_row, image_files, write_rows
    from bigtransfer.storage import new_file

    checkpoint = checkpoint_at(arguments.model)
    files = image_files(arguments.images)
    device = device_named(arguments.device)
    deployed, meta = load_deployed(checkpoint)
    if line := as_stored_line(str(arguments.model), meta.decode):
        print(line, file=sys.stderr)
    if narrows(arguments.precision, meta, device):
        deployed.narrow()
    found = answers(deployed.to(device), files, _BATCH, device)
    shown = tracked(found, "predict", len(files), unit="image")
    rows = (as_row(answer, meta, arguments.top) for answer in shown)
    if arguments.out is None:
        counts = _print(rows)
    else:
        with (
            new_file(arguments.out) as partial,
            partial.open("w", newline="", encoding="utf-8") as f,
        ):
            counts = write_rows(rows, f)
        print(f"{arguments.out}: {len(files):,} rows", file=sys.stderr)
    _sum_up(counts, meta)
    if counts["fault"] == len(files):
        raise DatasetError(f"none of {len(files):,} files could be read as an image")


def _print(rows: Iterable[dict[str, str]]) -> Counter[str]:
    from bigtransfer.serve.prediction import kinds_of

    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(kinds_of(row))
        if row["fault"]:
            print(f"{row['path']}: {row['fault']}")
            continue
        names = [key for key in row if key.startswith("predicted")]
        guesses = [f"{row[name]} {row[name.replace('predicted', 'probability')]}" for name in names]
        said = ", ".join(guesses) if row["predicted"] else "none of the classes"
        print(f"{row['path']}: {said}" + ("  (unsure)" if row["sure"] == "no" else ""))
    return counts


def _sum_up(counts: Counter[str], meta: TunedMeta) -> None:
    from bigtransfer.artifacts.calibration import Calibration

    if counts["fault"]:
        print(f"{counts['fault']:,} could not be read; their rows say why", file=sys.stderr)
    lowest = getattr(meta.calibration, "abstain_below", None)
    if counts["unsure"]:
        why = "the validation split gave no threshold" if lowest is None else f"below {lowest:.2f}"
        print(f"{counts['unsure']:,} are unsure ({why})", file=sys.stderr)
    if counts["uncalibrated"] and isinstance(meta.calibration, Calibration):
        why_not = meta.calibration.why_not
        print(f"not calibrated: {why_not}; no answer is called sure", file=sys.stderr)
