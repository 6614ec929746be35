"""`evidence.json`: what a model brings to the gates of its promotion; read without numpy."""

from __future__ import annotations

from typing import ClassVar

from bigtransfer.artifacts.base import Artifact, Part
from bigtransfer.artifacts.report import Metric


class CalibrationError(Part):
    """How far a model's probabilities are from the truth on its validation images, in [0, 1]."""

    error: float
    raw: float
    """Without its temperature."""
    lowest: float
    """Lower end of the one-sided 95 % interval of the error."""
    lowest_more: float
    """The same of the error less the raw one."""


class Evidence(Artifact):
    """What the answers beside it are about."""

    FILE: ClassVar[str] = "evidence.json"
    WHAT: ClassVar[str] = "what a model brings to its promotion"
    MAKER: ClassVar[str] = "evaluate"

    metric: Metric
    classes: tuple[str, ...]
    held_out: bool
    """Whether the networks were not trained on the validation split; if they were, no answers are
    kept (`answers.py`)."""
    validation_digest: str
    """Of the images and labels of the validation split, whatever their order."""
    validation_images: int
    seed: int
    """Of the model among the networks that differ from it by their seed alone."""
    calibration: CalibrationError | None
    """None: an image may have several labels, or there is nothing to say it of."""
