"""What training reads of a dataset, as one digest, wherever the dataset lies and is called."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from bigtransfer.data.manifest import read_manifest, rows_of

_COLUMNS = ("path", "labels", "split", "sha256")


def content_of(manifest_path: Path, *, with_splits: bool = True) -> str:
    """Return the digest of the classes and of path, labels, split and pixels of every image.

    Args:
        manifest_path: Written by `validate`; paths in it are below the dataset's own folder.
        with_splits: Whether the split of an image counts, and how files become pixels; without,
            the same files are the same content.

    Raises:
        DatasetError: If it is no manifest of this version.
    """
    table, facts = read_manifest(manifest_path)
    columns = [name for name in _COLUMNS if with_splits or name != "split"]
    known = [facts.classes, facts.multi_label]
    if with_splits:
        known.append(facts.decode.model_dump())
    digest = hashlib.sha256(json.dumps(known).encode())
    for row in rows_of(table, columns):
        digest.update(json.dumps([row[name] for name in columns]).encode())
    return digest.hexdigest()
