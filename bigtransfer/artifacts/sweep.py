"""`sweep.json`: what a sweep knows of its tasks beside their reports, so that it forgets none."""

from __future__ import annotations

from typing import ClassVar

from bigtransfer.artifacts.base import Artifact, Json, Part


class SweptEntry(Part):
    """A task that a sweep has come by."""

    group: str = ""
    reference: dict[str, float] = {}
    """Examples per class -> a published figure, percent."""
    official: bool = True
    """Whether its data said, when it was run, to hold the benchmark's own split."""
    missing: str = ""
    """Why there is no report of it."""
    begun: tuple[Json, ...] = ()
    """Networks that are finished while the task is not: their cell and validation scores."""


class SweepRecord(Artifact):
    """All tasks of a sweep's folder, by name."""

    FILE: ClassVar[str] = "sweep.json"
    WHAT: ClassVar[str] = "the record of a sweep"
    MAKER: ClassVar[str] = "bigtransfer sweep"
    SCHEMA: ClassVar[int] = 2  # 1: without `official`, which was so

    tasks: dict[str, SweptEntry]
