"""`cell.json`: what became of a cell of a study, written where no experiment of DVC holds it."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import ClassVar

from bigtransfer.artifacts.base import Artifact, Part
from bigtransfer.errors import StorageError


class Found(Part):
    """What a finished cell says."""

    val_top1: float
    """Of the upstream network on its own validation split."""
    steps: int
    images: int
    """That upstream training took, each time that it saw one."""
    parameters: int
    scores: dict[str, dict[int, float]]
    """Task, or `<task> <n> per class` where there are several sizes -> seed -> test score."""
    metrics: dict[str, str]
    """The same -> what is scored, e.g. top1."""
    curve: tuple[tuple[int, float], ...]
    """Images seen, and validation top-1 there."""

    def figures(self) -> dict[str, float]:
        """Return its figures by one name each, e.g. `digits_test_top1_median`."""
        own = {"upstream_val_top1": self.val_top1, "steps": self.steps, "images": self.images}
        for task, scores in self.scores.items():
            name = f"{task}_test_{self.metrics[task]}"
            own |= {f"{name}_median": median(scores.values()), f"{name}_min": min(scores.values()),
                    f"{name}_max": max(scores.values())}  # fmt: skip
        return own


class CellOutcome(Artifact):
    """A cell that has ended."""

    FILE: ClassVar[str] = "cell.json"
    WHAT: ClassVar[str] = "what became of a cell of a study"
    MAKER: ClassVar[str] = "study_cell"

    name: str
    title: str
    """What sets it apart, for people."""
    found: Found | None
    """None where it failed."""
    failure: str = ""
    """Why it failed: its stage and what that said."""

    @classmethod
    def of(cls, name: str, folder: Path) -> CellOutcome:
        """Read a cell's from its folder.

        Raises:
            StorageError: If it is another cell's; else as `read` does.
        """
        found = cls.read(folder)
        if found.name != name:
            raise StorageError(f"{str(folder)!r} is of cell {found.name}, and given as {name}")
        return found
