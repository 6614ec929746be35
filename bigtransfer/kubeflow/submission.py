"""What a submission changes in the pipelines that are built for it.

A pipeline file is loaded as a module, so its pipelines cannot be given arguments: they look here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Submission:
    """What a submission changes in every pipeline that is built while it lasts."""

    tag: str | None = None
    """Of the images; None: that of the checkout's sources."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Laid over the params, above the pipeline's own overlay."""
    fresh: bool = False
    """Whether sources are listed anew, where their address is the same as before, and parts and
    cells of a study are done again."""
    told: Mapping[str, str] = field(default_factory=dict)
    """Environment of every task: of which run it is. No part of any cache's key."""
    here: bool = False
    """Whether it runs on this machine, where tasks see its paths."""


_current = ContextVar("submission", default=Submission())  # noqa: B039  # frozen


def current() -> Submission:
    """Return the submission that pipelines are being built for; without one, the plain one."""
    return _current.get()


@contextmanager
def submitting(submission: Submission) -> Iterator[None]:
    """Build pipelines for a submission within the block."""
    token = _current.set(submission)
    try:
        yield
    finally:
        _current.reset(token)
