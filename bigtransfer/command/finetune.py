"""`bigtransfer finetune`: from a folder of images and weights to a tested model, in one command."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from pathlib import Path

from bigtransfer.api.run_folder import folder_name, was_made_of
from bigtransfer.api.transfer import (
    add_settings,
    require_weights,
    settings_in,
    settings_of,
    transfer,
)
from bigtransfer.errors import ConfigError

_RUNS = Path("runs")


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
        "--seeds", type=int, default=3, metavar="N", help="runs; the median counts (default: 3)"
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
    from bigtransfer.artifacts.calibration import Calibration
    from bigtransfer.report.table import METRICS, others_of
    from bigtransfer.storage import lock, new_folder

    images: Path = arguments.images
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds is {arguments.seeds}; at least one run is needed")
    name = folder_name(images)
    quarantine = {"on_bad": "quarantine", "bad_budget": arguments.quarantine}
    typed = settings_in(arguments.settings)
    settings = settings_of(
        name,
        {**(quarantine if arguments.quarantine else {}), **typed.data},
        {"seeds": list(range(arguments.seeds)), **typed.finetune},
        "--set",
    )
    if not images.exists():
        raise ConfigError(f"FOLDER {str(images)!r} does not exist; give a folder of images")
    require_weights(arguments.weights)
    folder: Path = arguments.to or _default_folder(images, name)
    model = folder / "model"
    with lock(folder / "lock", f"the run in {str(folder)!r}"):
        report = transfer(images, arguments.weights, folder, settings, agreed=arguments.yes).report
        chosen = folder / "checkpoints" / report.chosen.folder
        with new_folder(model, sealed=False) as partial:
            shutil.copytree(chosen, partial, dirs_exist_ok=True)
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
    print(f"\nMade\n  {model}\n  {folder / 'page' / 'index.html'}")
    place, onnx = shlex.quote(str(model)), shlex.quote(f"{report.task}.onnx")
    print(f"\nNext\n  bigtransfer predict {place} IMAGES\n  bigtransfer export {place} {onnx}")


def _default_folder(images: Path, name: str) -> Path:
    """Return the folder of a run for which none was named.

    Before 2026-11-26 folders were called otherwise (`pets` for `pets.v1`): such a one is used if it
    is of the same images.
    """
    before = re.sub(r"[^A-Za-z0-9_-]+", "-", images.resolve().stem).strip("-_") or "images"
    own, old = _RUNS / name, _RUNS / before
    return old if old != own and not own.exists() and was_made_of(old, images) else own
