"""Poison, honestly: which training images of a model a person should look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bigtransfer.artifacts.inspection import CrowdedClass, Inspection, Suspect
from bigtransfer.errors import CheckpointError, ConfigError
from bigtransfer.storage.places import Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bigtransfer.artifacts.weights import TunedMeta
    from bigtransfer.data.shards import Shards
    from bigtransfer.model.resnet import ResNetV2

_SHOWN = 60
_PRETRAINED = Path("artifacts") / "pretrain" / "checkpoint"


def inspect(
    checkpoint: Path,
    folder: Path,
    *,
    shards: Place,
    upstream: Path | None = None,
    device: str = "auto",
    name: str = "",
) -> Inspection:
    """Rank the images that a model was trained on, and write a page of the most suspicious ones.

    Args:
        checkpoint: Of a fine-tuned network.
        folder: To write `index.html`, `inspection.json` and `suspects.csv` into.
        shards: That it was trained on.
        upstream: The network that it began with; None: `artifacts/pretrain/checkpoint` if that is
            it, else the model's own features are used.
        device: `auto`, `cpu` or `cuda`.
        name: Of the model, for people.

    Raises:
        CheckpointError: If it does not know what it was trained on.
        ConfigError: If these are other shards, an image may have several labels, or the folder
            holds something else.
    """
    import numpy as np

    from bigtransfer.data.shards import open_shards
    from bigtransfer.evaluate.account import picture_of
    from bigtransfer.evaluate.suspects import find_suspects
    from bigtransfer.model.checkpoint import load_tuned, read_tuned_meta
    from bigtransfer.model.processor import device_named
    from bigtransfer.report.inspection import inspection_page
    from bigtransfer.storage import as_csv, new_folder

    if folder.is_dir() and any(folder.iterdir()) and not (folder / Inspection.FILE).is_file():
        raise ConfigError(f"{str(folder)!r} holds other files; name a new or an empty folder")
    meta = read_tuned_meta(checkpoint)
    if meta.multi_label:
        raise ConfigError("an image may have several labels here; only single labels are inspected")
    opened = open_shards(shards)
    rows = _trained_on(checkpoint, meta, opened, str(shards))
    frozen, features_of = _frozen(checkpoint, meta, upstream)
    networks = frozen, load_tuned(checkpoint)[0]
    found = find_suspects(opened, rows, networks, meta.crop, device_named(device))
    paths = opened.index["path"].take(found.rows).to_pylist()
    labels = opened.labels(found.rows)
    counts = np.bincount(labels, minlength=len(opened.classes))
    rank = [
        {
            "path": path,
            "label": opened.classes[label],
            "likely": opened.classes[likely],
            "suspicion": round(float(score), 6),
        }
        for path, label, likely, score in zip(
            paths, labels, found.likely, found.suspicion, strict=True
        )
    ]
    result = Inspection(
        model=name or checkpoint.name,
        upstream_digest=meta.upstream_digest,
        features_of=features_of,
        images=len(rows),
        looked_at=len(found.rows),
        doubted=found.doubted,
        crowded=None
        if found.crowded is None
        else tuple(
            CrowdedClass(
                label=opened.classes[one.label],
                images=int(counts[one.label]),
                doubted=one.doubted,
                pairs=one.pairs,
                by_chance=one.by_chance,
            )
            for one in found.crowded
        ),
        suspects=tuple(
            Suspect.model_validate({**one, "picture": picture_of(opened, int(row), 112)})
            for one, row in zip(rank[:_SHOWN], found.rows, strict=False)
        ),
    )
    with new_folder(folder) as partial:
        result.write(partial)
        (partial / "suspects.csv").write_text(as_csv(rank), "utf-8")
        (partial / "index.html").write_text(inspection_page(result), "utf-8")
    return result


def _trained_on(checkpoint: Path, meta: TunedMeta, shards: Shards, place: str) -> NDArray[np.int64]:
    """Return the rows of the shards that a network was trained on.

    Raises:
        CheckpointError: If nobody noted which images those were.
        ConfigError: If none of them is there.
    """
    import numpy as np

    from bigtransfer.model.checkpoint import read_trained_on

    noted = read_trained_on(checkpoint)
    if noted is None:
        raise CheckpointError(
            f"{str(checkpoint)!r} does not say which images it was trained on; fine-tune again "
            "with this version of the program"
        )
    if tuple(shards.classes) != tuple(meta.classes):
        raise ConfigError(f"{place!r} has other classes than the model; name its own --shards")
    rows = np.concatenate([shards.rows(split) for split in meta.train_on])
    own = rows[np.isin(shards.origin_digests(rows), noted)]
    if not len(own):
        raise ConfigError(
            f"none of the images that the model was trained on is in {place!r}; name its own "
            "--shards"
        )
    return own


def _frozen(
    checkpoint: Path, meta: TunedMeta, upstream: Path | None
) -> tuple[ResNetV2, Literal["upstream", "model"]]:
    """Return the network whose features may doubt labels, and which one that is."""
    from bigtransfer.model.checkpoint import load_checkpoint
    from bigtransfer.storage import digest_of

    if meta.trained == "head":  # the rest of it is the network that it began with
        return load_checkpoint(checkpoint)[0], "upstream"
    if upstream is None and meta.upstream_digest and _PRETRAINED.is_dir():
        upstream = _PRETRAINED if digest_of(_PRETRAINED) == meta.upstream_digest else None
    if upstream is None:
        return load_checkpoint(checkpoint)[0], "model"
    if not upstream.is_dir():
        raise ConfigError(f"upstream {str(upstream)!r} is no checkpoint folder")
    if meta.upstream_digest and digest_of(upstream) != meta.upstream_digest:
        raise ConfigError(
            f"{str(upstream)!r} is not the network that the model began with, whose digest is "
            f"{meta.upstream_digest[:12]}…"
        )
    return load_checkpoint(upstream)[0], "upstream"
