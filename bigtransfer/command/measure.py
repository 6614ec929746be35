"""`bigtransfer measure`: the champion is run beside a version that would replace it."""

from __future__ import annotations

import argparse
from pathlib import Path

from bigtransfer.command.promote import add_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Run the champion on the validation images of a version, where those are not the "
        "champion's own or it kept no answers, and both in turn for their latency. What is found "
        "is kept with the version; its gates read it. Nothing is promoted."
    )
    add_model(parser, "MODEL, MODEL@ALIAS or MODEL/VERSION (default: its alias challenger)")
    parser.add_argument(
        "--shards",
        metavar="PLACE",
        help="that the version was trained on (default: artifacts/datasets/<its dataset>/shards)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(arguments: argparse.Namespace) -> None:
    """Measure and say what was found.

    Raises:
        BigTransferError: If the two cannot be compared, or MLflow refuses.
    """
    from bigtransfer.api.measuring import measure
    from bigtransfer.extras import require
    from bigtransfer.storage.places import place_at
    from bigtransfer.track.versions import split_address

    require("mlflow", "measure")
    name, wanted = split_address(arguments.model)
    shards = place_at(arguments.shards) if arguments.shards else None
    one = measure(Path.cwd(), name, wanted, shards=shards, device=arguments.device)
    own, other, left_out = f"v{one.version}", f"v{one.champion}", one.found.left_out
    about = (
        "which of them it was trained on is not noted"
        if left_out is None
        else f"{left_out:,} that it was trained on are left out"
    )
    print(f"{other} answered the {one.images:,} validation images of {own}; {about}")
    print(f"one image takes {own} x{one.found.latency:.2f} of {other}: {one.found.latency_at}")
    print(f"the gates of {own} read this from now on: bigtransfer promote {name}/{one.version}")
