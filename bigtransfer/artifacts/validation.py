"""`validation.json`: what was found in a dataset, and what the gate says of it."""

from __future__ import annotations

from typing import ClassVar

from bigtransfer.artifacts.base import Artifact, Json, Part
from bigtransfer.artifacts.decoding import AS_STORED, DecodeSettings
from bigtransfer.errors import DatasetError


class Counts(Part):
    """How much of what a dataset holds."""

    images: int
    """Usable ones."""
    listed: int
    classes: int
    splits: dict[str, int]
    """Images of each that is there."""
    rejected: int
    flags: dict[str, int]
    """Kind of oddity -> images."""
    ignored_files: int
    bytes: int


class Outcome(Part):
    """What one expectation found."""

    rule: str
    """The rule in words."""
    expectation: str
    """Its name in Great Expectations."""
    success: bool
    checked: int
    """Rows it looked at."""
    failed: int
    """Rows that broke it."""
    failures: tuple[str, ...]
    """The first of those rows, named, with what is wrong."""

    def line(self) -> str:
        """Return one line for a person: rule, count, rows."""
        rows = "; ".join(self.failures[:5])
        more = f"; and {self.failed - 5} more" if self.failed > 5 else ""
        return (
            f"{self.rule}: {self.failed} of {self.checked} fail{': ' if rows else ''}{rows}{more}"
        )


class LeftOut(Part):
    """An image that is in the data and not in the dataset."""

    path: str
    reason: str


class ManifestFacts(Part):
    """What a dataset manifest says beside its rows."""

    dataset: str
    address: str
    layout: str
    multi_label: bool
    validation_sha256: str
    classes: tuple[str, ...]
    """In label order."""
    classes_sha256: str
    near_duplicate_side: int
    counts: Counts
    decode: DecodeSettings = AS_STORED
    """How its images became pixels; not noted before 2026-11-26."""
    revision: str = ""
    """MD5 of the data in the `.dvc` file beside them; empty: there is none, or it was not noted
    before 2026-11-27. That of a remote source stands in its address."""
    split_seed: int | None = None
    """Of the splits that were made; None: the data bring all, or it was not noted before then."""
    left_out: tuple[LeftOut, ...] = ()
    """The first of the images that are not used; all of the rejected are in `quarantine.csv`."""
    left_out_in_all: int = 0


class ValidationReport(Artifact):
    """The verdict on a dataset."""

    FILE: ClassVar[str] = "validation.json"
    WHAT: ClassVar[str] = "a validation report"
    MAKER: ClassVar[str] = "validate"
    REFUSAL: ClassVar[type[DatasetError]] = DatasetError

    dataset: str
    address: str
    layout: str
    success: bool
    counts: Counts
    notes: tuple[str, ...]
    rules: tuple[Outcome, ...]
    params: Json
    """As the user wrote them."""
