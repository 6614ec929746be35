"""Where the commands find a fine-tuned model: a checkpoint folder, or MLflow's registry."""

from __future__ import annotations

import argparse
from pathlib import Path

from bigtransfer.errors import CheckpointError

MODEL_HELP = (
    "a fine-tuned checkpoint, e.g. artifacts/finetune/digits/upstream-5-0, or a registered model, "
    "e.g. models:/bigtransfer-digits@champion"
)


def checkpoint_at(place: str) -> Path:
    """Return the checkpoint folder that a place names.

    Raises:
        CheckpointError: If there is none.
        TrackingError: If the registry does not know the model.
    """
    if place.startswith("models:/"):
        from bigtransfer.track.registry import fetch_checkpoint

        return fetch_checkpoint(Path.cwd(), place)
    folder = Path(place)
    if not folder.is_dir():
        raise CheckpointError(f"{place!r} is no folder; MODEL is {MODEL_HELP}")
    return folder


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare `--device`."""
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="auto: a GPU where there is one (default: %(default)s)",
    )
