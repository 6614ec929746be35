"""`measured.json`: a champion, run on the validation images of a version that would replace it."""

from __future__ import annotations

from typing import ClassVar

from bigtransfer.artifacts.base import Artifact


class Measured(Artifact):
    """What `bigtransfer measure` found; the champion's answers lie beside it (`answers.py`).

    Of an image that the champion was trained on the answer is NaN: it says nothing.
    """

    FILE: ClassVar[str] = "measured.json"
    WHAT: ClassVar[str] = "what a champion was measured at"
    MAKER: ClassVar[str] = "measure"

    champion: str
    """Digest of its checkpoint."""
    validation_digest: str
    """Of the images that both answered."""
    left_out: int | None
    """Of those images, that the champion was trained on; None: nobody noted which."""
    latency: float
    """Of one image, as a multiple of the champion's; median over rounds in turn."""
    latency_at: str
    """Milliseconds of both and the device, for people."""
