"""`audit.json`: which images that tasks are tested on the upstream network has seen."""

from __future__ import annotations

from typing import ClassVar

from bigtransfer.artifacts.base import Artifact, Part
from bigtransfer.artifacts.validation import ManifestFacts
from bigtransfer.errors import DatasetError


class Closest(Part):
    """The two images, one of each side, whose looks differ least; seldom one image."""

    downstream_path: str
    downstream_split: str
    upstream_path: str
    mirrored: bool
    """Whether it is the mirror image of the one that resembles the other."""
    bits: int
    """In which their 64-bit hashes differ."""
    correlation: float
    """Of their thumbnails of 16x16 grey levels, -1 to 1."""
    counts: bool
    """Whether looks count for both: large enough, and not switched off."""
    pairs: int
    """That were looked at; fewer than there are where those would take minutes."""


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
    comparable: tuple[int, int] | None = None
    """Downstream and upstream images that are large enough for their looks to count. Not noted in
    schema 1."""
    closest: Closest | None = None
    """None: there was nothing to compare. Not noted in schema 1."""


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
    SCHEMA: ClassVar[int] = 2
    REFUSAL: ClassVar[type[DatasetError]] = DatasetError

    success: bool
    datasets: dict[str, str]
    """Name -> SHA-256 of its manifest."""
    compared: tuple[Compared, ...]
    leaks: tuple[Leak, ...]
    facts: dict[str, ManifestFacts] = {}
    """Name -> what its manifest says of the dataset; empty: not noted before 2026-11-27."""
