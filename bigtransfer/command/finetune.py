"""`bigtransfer finetune`: from a folder of images and weights to a tested model, in one command."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from bigtransfer.api.transfer import SEEDS
from bigtransfer.command.arguments import add_settings, settings_in, with_ways_out
from bigtransfer.errors import TooLongError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Check the images, pack them, fine-tune the weights by the BiT-HyperRule with several "
        "seeds, and write a report. The same again goes on where it was stopped."
    )
    parser.add_argument(
        "images", type=Path, metavar="FOLDER", help="a folder per class, or a table"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        required=True,
        metavar="W",
        help="what to start from: a published file (.npz; `bigtransfer weights fetch`) or an "
        "upstream checkpoint folder",
    )
    parser.add_argument(
        "--to", type=Path, metavar="RUN", help="folder to write (default: runs/<name of FOLDER>)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=SEEDS,
        metavar="N",
        help="runs; the median counts (default: %(default)s)",
    )
    parser.add_argument(
        "--quarantine",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="leave out so large a share of unusable files, e.g. 0.01 (default: none)",
    )
    add_settings(parser)


def run(arguments: argparse.Namespace) -> None:
    """Do it all.

    Raises:
        BigTransferError: One line that says what is wrong with the input.
        GateError: If the images should not be used as they are.
    """
    from bigtransfer.api.finetuning import finetune
    from bigtransfer.artifacts.calibration import Calibration
    from bigtransfer.report.table import METRICS, others_of

    typed = settings_in(arguments.settings)
    try:
        model = finetune(
            arguments.images,
            weights=arguments.weights,
            to=arguments.to,
            quick=arguments.quick,
            quarantine=arguments.quarantine,
            agreed=arguments.yes,
            data=typed.data,
            source="--set",
            **{"seeds": arguments.seeds, **typed.finetune},
        )
    except TooLongError as error:
        raise with_ways_out(error, _typed(arguments)) from error
    assert model.report is not None
    report = model.report.facts
    for row in report.rows:
        print(
            f"             test {METRICS[row.metric]} {100 * row.median:.1f} % (median of "
            f"{row.seeds}; {100 * row.min:.1f} to {100 * row.max:.1f})" + others_of(row)
        )
    if report.baseline is not None:
        print(
            f"             always saying {report.largest_class!r} would be right in "
            f"{100 * report.baseline:.1f} %"
        )
    if isinstance(report.calibration, Calibration) and not report.calibration.calibrated:
        print(f"             not calibrated: {report.calibration.why_not}")
    print(f"\nMade\n  {model.folder}\n  {model.report.page}")
    place, onnx = shlex.quote(str(model.folder)), shlex.quote(f"{report.task}.onnx")
    print(f"\nNext\n  bigtransfer predict {place} IMAGES\n  bigtransfer export {place} {onnx}")


def _typed(arguments: argparse.Namespace) -> str:
    """Return the command as it was typed."""
    words = ["bigtransfer", "finetune", str(arguments.images), "--weights", str(arguments.weights)]
    if arguments.to is not None:
        words += ["--to", str(arguments.to)]
    if arguments.seeds != SEEDS:
        words += ["--seeds", str(arguments.seeds)]
    if arguments.quarantine:
        words += ["--quarantine", str(arguments.quarantine)]
    for setting in arguments.settings:
        words += ["--set", setting]
    return shlex.join(words)
