"""`index.json` of shards: what is in them, without opening one."""

from __future__ import annotations

from typing import ClassVar

from bigtransfer.artifacts.base import Artifact
from bigtransfer.artifacts.decoding import AS_STORED, DecodeSettings
from bigtransfer.errors import DatasetError


class ShardsSummary(Artifact):
    """What HyperRule and whoever plans must know of a dataset."""

    FILE: ClassVar[str] = "index.json"
    WHAT: ClassVar[str] = "the summary of shards"
    MAKER: ClassVar[str] = "shard"
    SCHEMA: ClassVar[int] = 3
    REFUSAL: ClassVar[type[DatasetError]] = DatasetError

    dataset: str
    examples: int
    splits: dict[str, int]
    """Images of each that is there."""
    classes: int
    classes_sha256: str
    multi_label: bool
    shards: int
    short_side: int | None
    """Larger images were made smaller to it, pixels; None: none were."""
    height: int
    """Median, pixels."""
    width: int
    plan: str
    """Digest of all that decides the bytes."""
    decode: DecodeSettings = AS_STORED
    """How its images become pixels; the second schema, before 2026-11-26, does not say."""
