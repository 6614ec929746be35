"""`bigtransfer weights`: fetch published weights, say what a file holds, convert it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from bigtransfer.errors import ConfigError, did_you_mean
from bigtransfer.model.names import PUBLISHED

BUCKET = "https://storage.googleapis.com/bit_models"
"""Where the authors published their weights (README of google-research/big_transfer)."""
PUBLISHED_FILES = (
    *(f"BiT-{upstream}-{name}" for upstream in "MS" for name in PUBLISHED),
    *(f"BiT-M-{name}-ILSVRC2012" for name in PUBLISHED),
)
"""The upstream checkpoints; besides, there are `vtab/…` and `distill/…`."""
_OTHER_FOLDERS = re.compile(r"(vtab|distill)/[\w.-]+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands of `weights`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    fetch = actions.add_parser(
        "fetch",
        allow_abbrev=False,
        help="download a published file, resumable and checked",
        description="Names: " + ", ".join(PUBLISHED_FILES) + ", vtab/…, distill/…",
    )
    fetch.add_argument("name", metavar="NAME", help="e.g. BiT-M-R50x1")
    fetch.add_argument(
        "--to",
        type=Path,
        default=Path("data/weights"),
        metavar="FOLDER",
        help="folder to write to (default: %(default)s)",
    )
    fetch.add_argument(
        "--source",
        default=BUCKET,
        metavar="URL",
        help="mirror of the bucket: a URL, or a folder that holds the files (default: %(default)s)",
    )
    fetch.add_argument(
        "--sha256", metavar="HEX", help="what the file must be; without it, what came is recorded"
    )
    show = actions.add_parser(
        "show", help="say what a file or a checkpoint holds", allow_abbrev=False
    )
    show.add_argument("file", type=Path, metavar="FILE", help=".npz file or checkpoint folder")
    convert = actions.add_parser(
        "convert",
        allow_abbrev=False,
        help="between published files (.npz) and checkpoint folders",
    )
    convert.add_argument("source", type=Path, metavar="IN", help=".npz file or checkpoint folder")
    convert.add_argument(
        "target", type=Path, metavar="OUT", help="a name that ends in .npz, or a folder"
    )
    convert.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="one class name per line, in the order of the head (default: 0, 1, 2, …)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Do what was asked.

    Raises:
        BigTransferError: One line that says what is wrong with the input.
    """
    if arguments.action == "fetch":
        _fetch(arguments.name, arguments.to, arguments.source, arguments.sha256)
    elif arguments.action == "show":
        _print_rows(_describe(arguments.file))
    else:
        _convert(arguments.source, arguments.target, arguments.classes)


def _fetch(name: str, folder: Path, source: str, sha256: str | None) -> None:
    from bigtransfer.model.published import describe_npz
    from bigtransfer.storage.download import fetch

    name = name.removesuffix(".npz")
    if name not in PUBLISHED_FILES and not _OTHER_FOLDERS.fullmatch(name):
        raise ConfigError(
            f"unknown weights {name!r}{did_you_mean(name, PUBLISHED_FILES)}; "
            "`bigtransfer weights fetch --help` lists the names"
        )
    base = source if "://" in source else Path(source).resolve().as_uri()
    fetched = fetch(
        f"{base.rstrip('/')}/{name}.npz", folder / f"{name}.npz", sha256=sha256, check=describe_npz
    )
    print(f"{fetched.path}: {'is there already' if fetched.was_there else 'fetched'}")
    _print_rows(_describe(fetched.path))


def _describe(path: Path) -> dict[str, str]:
    if path.is_dir():
        return _describe_folder(path)
    from bigtransfer.model.published import describe_npz

    found = describe_npz(path)
    return {
        "architecture": _architecture(found.architecture, found.root),
        "classes": "no head" if found.num_classes is None else f"{found.num_classes:,}",
        "parameters": f"{found.parameters:,}",
        "sha256": found.sha256,
    }


def _describe_folder(path: Path) -> dict[str, str]:
    from bigtransfer.model.checkpoint import load_checkpoint

    model, meta = load_checkpoint(path)
    classes = meta.classes
    some = ", ".join(classes[:3]) + (", …" if len(classes) > 3 else "")
    return {
        "architecture": _architecture(meta.architecture, meta.root),
        "norm": meta.norm,
        "classes": f"{len(classes):,} ({some})",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "sha256": f"{meta.digest} (of MANIFEST.json)",
    }


def _architecture(name: str, root: str) -> str:
    kinds = {"imagenet": "root 7x7 with stride 2 and pool", "small": "root 3x3"}
    return f"{name}, {kinds[root]}"


def _print_rows(rows: dict[str, str]) -> None:
    for name, value in rows.items():
        print(f"  {name:<14}{value}")


def _convert(source: Path, target: Path, classes: Path | None) -> None:
    from_folder, to_folder = source.is_dir(), target.suffix != ".npz"
    if from_folder == to_folder:
        kind = "checkpoint folders" if from_folder else "published files"
        raise ConfigError(
            f"{str(source)!r} and {str(target)!r} are both {kind}; give one .npz and one folder"
        )
    if target.exists():
        raise ConfigError(f"{str(target)!r} is there already; give another name or move it away")
    if from_folder:
        from bigtransfer.model import load_checkpoint, save_npz

        if classes is not None:
            raise ConfigError("--classes goes with a .npz alone; a checkpoint has its own names")
        model, _ = load_checkpoint(source)
        save_npz(model, target)
    else:
        from bigtransfer.model.conversion import to_checkpoint

        to_checkpoint(source, target, classes)
    print(f"{target}: written")
    _print_rows(_describe(target))
