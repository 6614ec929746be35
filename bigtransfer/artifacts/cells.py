"""`cells.json`: which networks `finetune` made of a task, and what they were made of."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict

from bigtransfer.artifacts.base import Artifact, Json, Part
from bigtransfer.errors import CheckpointError

FULL: Literal["full"] = "full"


class Cell(BaseModel):
    """One fine-tuning run of a grid."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    init: Literal["upstream", "scratch"]
    examples_per_class: int | Literal["full"]
    """Of the balanced subset that is trained on, or `full`: all training images."""
    seed: int
    """Of the subset, the order, and the weights of a network from scratch."""

    @property
    def name(self) -> str:
        """Return the name of its folder, e.g. `upstream-5-0`."""
        return f"{self.init}-{self.examples_per_class}-{self.seed}"


class ListedCell(Cell):
    """A cell, and the folder that its network lies in."""

    folder: str
    seconds: float | None = None
    """That its training took in all; None here and below: not known."""
    device: str | None = None
    """That it was trained on, for people."""
    peak_memory_bytes: int | None = None
    """The most that it held of a GPU's memory; on a CPU, that its process held."""

    @classmethod
    def of(cls, cell: Cell, **effort: Any) -> Self:
        """Return a cell with the folder of its own name, and what it has cost, if it is known."""
        return cls(**cell.model_dump(), folder=cell.name, **effort)


class Origin(Part):
    """Where the weights come from that networks of a task began with."""

    dataset: str = ""
    """That they were pretrained on by this program."""
    file: str = ""
    """Published by others."""
    sha256: str = ""
    """Of that file."""


class Cells(Artifact):
    """The networks of a task; each lies in a folder beside it."""

    FILE: ClassVar[str] = "cells.json"
    WHAT: ClassVar[str] = "the list of fine-tuned networks"
    MAKER: ClassVar[str] = "finetune"
    REFUSAL: ClassVar[type[CheckpointError]] = CheckpointError

    task: str
    dataset: str
    multi_label: bool
    recipe: Json
    """Params that decide what a network becomes, as JSON values."""
    upstream_digest: str
    upstream: Origin | None = None
    """None: not noted before 2026-11-27."""
    shards_digest: str
    """Of every byte of the shards."""
    content_digest: str = ""
    """Of what training reads of them (`Shards.content_digest`); not noted before 2026-11-26."""
    code: dict[str, str | None] = {}
    """Folder -> version of the code that made its network; none noted before 2026-11-26."""
    cells: tuple[ListedCell, ...]
