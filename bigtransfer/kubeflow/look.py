"""One thing that `bigtransfer doctor --cluster` looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """What was found, and whether it is as it should be."""

    name: str
    good: bool
    text: str
    """One line; what mends it on lines of its own, indented."""
