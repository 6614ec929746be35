"""`audit.json`: which images that tasks are tested on the upstream network has seen."""

from __future__ import annotations

from typing import ClassVar

from bigtransfer.artifacts.base import Artifact, Part
from bigtransfer.errors import DatasetError


class Compared(Part):
    """Two datasets."""

    upstream: str
    downstream: str
    upstream_images: int
    """Of the train split."""
    downstream_images: int
    """Of the splits val and test."""
    leaks: int
    by_looks: bool
    """Whether images that look the same count, too; if not, equal pixels alone."""


class Leak(Part):
    """An image that is on both sides."""

    downstream: str
    how: str
    """E.g. `mirror image of`."""
    downstream_path: str
    downstream_split: str
    upstream_path: str


class Audit(Artifact):
    """The verdict over all datasets."""

    FILE: ClassVar[str] = "audit.json"
    WHAT: ClassVar[str] = "the outcome of an audit"
    MAKER: ClassVar[str] = "audit"
    REFUSAL: ClassVar[type[DatasetError]] = DatasetError

    success: bool
    datasets: dict[str, str]
    """Name -> SHA-256 of its manifest."""
    compared: tuple[Compared, ...]
    leaks: tuple[Leak, ...]
