"""`inspection.json`: training images of a model that a person should look at."""

from __future__ import annotations

from typing import ClassVar, Literal

from bigtransfer.artifacts.base import Artifact, Part


class Suspect(Part):
    """A training image that stands high in the list."""

    path: str
    label: str
    likely: str
    """What a head on frozen features says that was fitted without it."""
    suspicion: float
    """In [0, 1]: its place in the list of doubted labels or that of spectral scores, the higher."""
    picture: str
    """A `data:` URI."""


class CrowdedClass(Part):
    """A class with more false labels from many other classes than chance puts there."""

    label: str
    images: int
    doubted: int
    pairs: int
    by_chance: float


class Inspection(Artifact):
    """What was looked at, and what was found; an alarm is no proof, and neither is its absence."""

    FILE: ClassVar[str] = "inspection.json"
    WHAT: ClassVar[str] = "what an inspection found"
    MAKER: ClassVar[str] = "inspect"

    model: str
    upstream_digest: str | None
    """Of the network that it began with; None: it was trained from scratch."""
    features_of: Literal["upstream", "model"]
    """Whose features doubt labels: of the network that it began with, or its own, which has been
    trained on these very labels and doubts them less."""
    images: int
    """That it was trained on, in these shards."""
    looked_at: int
    doubted: int
    """Whose label another class is more likely than."""
    crowded: tuple[CrowdedClass, ...] | None
    """None: the features tell the classes apart too badly to say."""
    suspects: tuple[Suspect, ...]
    """The first; suspects.csv has all that were looked at."""
