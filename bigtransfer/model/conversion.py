"""From a published file to a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from bigtransfer.artifacts.weights import PublishedFile, UpstreamMeta
from bigtransfer.errors import CheckpointError, ConfigError
from bigtransfer.model.checkpoint import write_checkpoint
from bigtransfer.model.published import describe_npz, load_npz
from bigtransfer.model.resnet import create_model

_CROP = 224


def to_checkpoint(source: Path, target: Path, classes: Path | None) -> None:
    """Write a published file as a checkpoint folder.

    Args:
        source: Published file (.npz).
        target: Folder to write.
        classes: File with a class name per line; None: 0, 1, 2, …

    Raises:
        BigTransferError: If it is no such file, or the names are not as many as its classes.
    """
    found = describe_npz(source)
    if found.num_classes is None:
        raise CheckpointError(f"weights {str(source)!r} have no head; a checkpoint needs one")
    names = [str(n) for n in range(found.num_classes)] if classes is None else _names(classes)
    if len(names) != found.num_classes:
        raise ConfigError(
            f"{str(classes)!r} holds {len(names):,} names, the head of {str(source)!r} has "
            f"{found.num_classes:,} classes; give one name per line"
        )
    model = create_model(found.architecture, found.num_classes, root=found.root)
    load_npz(model, source)
    meta = UpstreamMeta(
        architecture=found.architecture,
        root=found.root,
        norm="gn_ws",
        classes=tuple(names),
        crop=_CROP,
        source=PublishedFile(file=source.name, sha256=found.sha256),
    )
    write_checkpoint(target, model, meta)


def as_checkpoint(weights: Path, folder: Path) -> Path:
    """Return the checkpoint folder of some weights.

    Args:
        weights: Checkpoint folder, a published file, or a folder with nothing but that file in it.
        folder: To write, if it is a file.

    Raises:
        BigTransferError: If it is none of these.
    """
    if weights.is_dir():
        inside = list(weights.iterdir())
        if len(inside) == 1 and inside[0].suffix == ".npz":
            weights = inside[0]
    if weights.is_file():
        to_checkpoint(weights, folder, None)
        return folder
    return weights


def _names(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}; give a text file") from error
    return [line for line in map(str.strip, lines) if line]
