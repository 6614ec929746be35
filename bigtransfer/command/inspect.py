"""`bigtransfer inspect`: training images of a model that may have been planted."""

from __future__ import annotations

import argparse
from pathlib import Path

from bigtransfer.api.models import MODEL_HELP, checkpoint_at
from bigtransfer.command.arguments import add_device
from bigtransfer.errors import ConfigError
from bigtransfer.storage.places import Place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Rank the images that a model was trained on by signs of poisoned data, and write a page "
        "to look at: labels that a head on frozen features doubts, spectral signatures, classes "
        "into which images of many others were put. Evidence, no proof; nothing is refused."
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--shards",
        metavar="PLACE",
        help="that it was trained on (default: those of its run or of the workflow)",
    )
    parser.add_argument(
        "--upstream",
        type=Path,
        metavar="FOLDER",
        help="checkpoint that it began with (default: artifacts/pretrain/checkpoint if that is it)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("inspection"), metavar="FOLDER",
        help="folder to write index.html, inspection.json and suspects.csv into (default: "
        "%(default)s)",
    )  # fmt: skip
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Inspect and say what should be looked at.

    Raises:
        BigTransferError: If the model or its shards cannot be had.
    """
    from bigtransfer.api.inspecting import inspect
    from bigtransfer.progress import counted

    checkpoint = checkpoint_at(arguments.model, within_run=True)
    found = inspect(
        checkpoint,
        arguments.out,
        shards=_shards(arguments.shards, checkpoint),
        upstream=arguments.upstream,
        device=arguments.device,
        name=str(arguments.model),
    )
    print(
        f"{found.looked_at:,} of {found.images:,} training images looked at; the labels of "
        f"{found.doubted:,} are doubted"
    )
    if found.features_of == "model":
        print("by the model's own features, which doubt little: --upstream names a better network")
    for one in found.crowded or ():
        print(
            f"look at class {one.label!r}: {one.doubted:,} of {one.images:,} images are said to be "
            "of many other classes, more than chance puts there"
        )
    if found.crowded is None:
        print("classes are not judged: the features tell them apart too badly, too much is doubted")
    elif not found.crowded:
        print("no class has more false labels from many others than chance puts there")
    print(f"{arguments.out / 'index.html'}: {counted(len(found.suspects), 'image')} to look at")


def _shards(given: str | None, checkpoint: Path) -> Place:
    from bigtransfer import config
    from bigtransfer.model.checkpoint import read_tuned_meta
    from bigtransfer.storage.s3 import S3Path

    if given is not None:
        return S3Path.parse(given) if given.startswith("s3://") else Path(given)
    dataset = task = read_tuned_meta(checkpoint).task
    if Path("params.yaml").is_file():
        known = config.load(Path("params.yaml")).tasks
        dataset = known[task].dataset if task in known else task
    places = [checkpoint.parent / "shards", Path("artifacts") / "datasets" / dataset / "shards"]
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(
        f"the shards that the model was trained on are not at {str(places[-1])!r}; name them with "
        "--shards"
    )
