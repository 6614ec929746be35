"""`prepared.json`: what a folder was made of by `data prepare`, and whose split it holds."""

from __future__ import annotations

from typing import ClassVar

from bigtransfer.artifacts.base import Artifact


class Prepared(Artifact):
    """A task of a benchmark whose images and split were made here."""

    FILE: ClassVar[str] = "prepared.json"
    WHAT: ClassVar[str] = "the record of how a task was prepared"
    MAKER: ClassVar[str] = "bigtransfer data prepare"

    task: str
    """As it was asked for, e.g. `vtab/pets`."""
    official: bool
    """Whether the split is the benchmark's own."""
    why: str = ""
    """If it is not: why it cannot be."""
    splits: dict[str, int]
    """Split -> images."""
