"""From a model to what made it, read again; and from an image to the models that had it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from bigtransfer.errors import BigTransferError, ConfigError
from bigtransfer.storage import digest_of, sha256_file
from bigtransfer.track.explaining import FOLDERS, Explanation

_DATASETS = Path("artifacts") / "datasets"
_UPSTREAM = Path("artifacts") / "pretrain" / "checkpoint"
_SAME, _OTHER, _AWAY = "as registered", "differs", "could not be reached"


def verified(found: Explanation) -> dict[str, str]:
    """Read again what made a version; return for each thing whether it is as it was registered.

    Args:
        found: With `damage`, of its own folders.

    Returns:
        Thing -> `as registered…`, `differs: …`, `could not be reached: …` or `cannot be said: …`.
    """
    noted = [name for name in FOLDERS if name not in found.unnoted]
    said = {}
    if found.damage is not None:  # also where whoever changed a file took its digest away
        said[", ".join(noted) or "its digests"] = f"{_OTHER}: {found.damage}"
    elif noted:
        said[", ".join(noted)] = _SAME
    if found.unnoted:
        said[", ".join(found.unnoted)] = "cannot be said: no digest is noted"
    data = found.facts["data"]
    said["shards"] = _shards(data["dataset"], data["shards"])
    for what, digest in data.items():
        if what.startswith("manifest of "):
            name = what.removeprefix("manifest of ")
            said[what] = _file(_DATASETS / name / "manifest.parquet", digest)
    if found.facts["upstream"].get("pretrained here on"):
        said["upstream weights"] = _upstream(found.facts["upstream"]["digest"])
    return said


def _file(path: Path, digest: str) -> str:
    if not path.is_file():
        return f"{_AWAY}: {str(path)!r} is not here"
    own = sha256_file(path)
    return f"{_SAME}: {path}" if own == digest else f"{_OTHER}: {str(path)!r} is another, {own}"


def _shards(dataset: str, digest: str) -> str:
    from bigtransfer.data.shards import open_shards

    folder = _DATASETS / dataset / "shards"
    if not folder.is_dir():
        return f"{_AWAY}: {str(folder)!r} is not here"
    try:
        own = open_shards(folder).digest
    except BigTransferError as error:
        return f"{_OTHER}: {error}"
    if own != digest:
        return f"{_OTHER}: those in {str(folder)!r} are others, {own}"
    return f"{_SAME}: {folder}"


def _upstream(digest: str) -> str:
    from bigtransfer.storage import verify_folder

    if not _UPSTREAM.is_dir():
        return f"{_AWAY}: {str(_UPSTREAM)!r} is not here"
    try:
        verify_folder(_UPSTREAM)
    except BigTransferError as error:
        return f"{_OTHER}: {error}"
    own = digest_of(_UPSTREAM)
    if own != digest:
        return f"{_OTHER}: those in {str(_UPSTREAM)!r} are others, {own}"
    return f"{_SAME}: {_UPSTREAM}"


@dataclass(frozen=True)
class Found:
    """An image in a dataset."""

    dataset: str
    path: str
    split: str
    shard: str
    versions: tuple[tuple[str, str], ...]
    """Registered version -> how it had the image."""


@dataclass(frozen=True)
class Where:
    """All places of an image."""

    sha256: str
    places: tuple[Found, ...]
    looked_at: int
    """Datasets."""
    not_noted: tuple[str, ...]
    """Versions of older code, whose datasets nobody noted."""


def where(project: Path, image: str) -> Where:
    """Find an image in the datasets of a project and in its registry.

    Args:
        project: The project's root.
        image: A file, or the SHA-256 of one.

    Raises:
        ConfigError: If it is neither.
        TrackingError: If MLflow refuses.
    """
    sha = _sha_of(image)
    manifests = sorted((project / _DATASETS).glob("*/manifest.parquet"))
    places: list[Found] = []
    not_noted: tuple[str, ...] = ()
    for manifest in manifests:
        rows = _rows(manifest, sha)
        if not rows:
            continue
        name = manifest.parent.name
        versions, not_noted = _versions(project, name, sha256_file(manifest))
        for path, split in rows:
            how = tuple((version, _how(split, role)) for version, role in versions)
            places.append(Found(name, path, split, _shard(manifest.parent, path), how))
    return Where(sha, tuple(places), len(manifests), not_noted)


def _sha_of(image: str) -> str:
    if re.fullmatch(r"[0-9a-fA-F]{64}", image):
        return image.lower()
    if not Path(image).is_file():
        raise ConfigError(f"{image!r} is no file and no SHA-256 (64 hexadecimal digits)")
    return sha256_file(Path(image))


def _rows(manifest: Path, sha: str) -> list[tuple[str, str]]:
    """Return path and split of the rows that hold these bytes."""
    import pyarrow.parquet as pq

    table = pq.read_table(manifest, columns=["path", "split"], filters=[("sha256", "=", sha)])
    return [(row["path"], row["split"] or "in no split") for row in table.to_pylist()]


def _shard(folder: Path, path: str) -> str:
    import pyarrow.parquet as pq

    index = folder / "shards" / "index.parquet"
    if not index.is_file():
        return "its shards are not here"
    rows = pq.read_table(index, columns=["shard"], filters=[("path", "=", path)]).to_pylist()
    return f"shard {rows[0]['shard']}" if rows else "in no shard"


def _versions(
    project: Path, dataset: str, digest: str
) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Return the versions that had a dataset, as task or as upstream; and those not noted."""
    from bigtransfer.track.explaining import all_versions
    from bigtransfer.track.versions import MANIFESTS_TAG

    found, not_noted = [], []
    for version in all_versions(project):
        own, tags = f"{version.name}/{version.version}", version.tags or {}
        if MANIFESTS_TAG not in tags:
            not_noted.append(own)
        elif json.loads(tags[MANIFESTS_TAG]).get(dataset) == digest:
            found.append((own, "task" if tags.get("dataset") == dataset else "upstream"))
    return found, tuple(not_noted)


def _how(split: str, role: str) -> str:
    if role == "upstream":
        return "its upstream network was trained on it" if split == "train" else "not seen"
    if split == "train":
        return "it was trained on it, or on a subset of its class"
    return {"val": "it was chosen, calibrated or trained by it", "test": "it was tested on it"}.get(
        split, "not seen"
    )
