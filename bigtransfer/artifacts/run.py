"""`run.json`: what the folder of a run was made from, so that no other images overwrite it."""

from __future__ import annotations

from typing import ClassVar

from bigtransfer.artifacts.base import Artifact


class Run(Artifact):
    """The images that a run folder belongs to."""

    FILE: ClassVar[str] = "run.json"
    WHAT: ClassVar[str] = "the record of what a run was made from"
    MAKER: ClassVar[str] = "bigtransfer finetune"

    name: str
    """Of the task, as it was called first; a folder of images may be renamed later."""
    images: str
    """Where the dataset lies, absolute."""
    content: str
    """Digest of what training reads of it: classes; path, labels, split and bytes of images."""
    packing: str
    """Digest of how it is packed."""
    shards: str | None = None
    """Digest of the shards that were made of just this; None: they are not there yet."""
