"""The BiT-HyperRule: schedule, resolution and MixUp from data size and image size alone.

Paper: arXiv 1912.11370, section 3.3. Where the authors' repository (google-research/big_transfer,
`bit_hyperrule.py`) differs from the paper, both are presets by name:

- `paper`: decays at 30/60/90 % of the steps, no warm-up is mentioned, 448 -> 384 pixels
  (512 -> 480 for R152x4 alone);
- `repository`: the small schedule decays at 40/60/80 %, warm-up of 100 or 500 steps,
  512 -> 480 pixels for every large image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bigtransfer.train.schedule import Schedule

PRESETS = ("paper", "repository")
BATCH_SIZE = 512
BASE_LR = 0.003
SMALL_DATA, MEDIUM_DATA = 20_000, 500_000  # upper ends of the size regimes, images
_SMALL_AREA_PIXELS = 96 * 96
_STEPS = {"small": 500, "medium": 10_000, "large": 20_000}
_MIXUP_ALPHA = 0.1
_LARGEST = "R152x4"


@dataclass(frozen=True)
class HyperRule:
    """What the rule says for one task. Sizes in pixels, steps in optimiser steps."""

    regime: str
    total_steps: int
    warmup_steps: int
    decay_steps: tuple[int, ...]
    mixup_alpha: float | None
    precrop: int
    crop: int
    batch_size: int
    base_lr: float

    def learning_rate(self, step: int) -> float:
        """Return the rate of an update, counted from 0."""
        return self.schedule.learning_rate(step)

    @property
    def schedule(self) -> Schedule:
        """Return the learning-rate schedule."""
        return Schedule(self.total_steps, self.base_lr, self.warmup_steps, self.decay_steps)

    def overridden(self, **values: Any) -> HyperRule:
        """Return the rule with some values replaced; None keeps the rule's own.

        A new `total_steps` keeps the schedule's shape: warm-up and decays move in proportion.
        """
        given = {key: value for key, value in values.items() if value is not None}
        steps = given.get("total_steps", self.total_steps)
        if steps != self.total_steps:
            scale = steps / self.total_steps
            given.setdefault("warmup_steps", round(self.warmup_steps * scale))
            given.setdefault("decay_steps", tuple(round(s * scale) for s in self.decay_steps))
        return replace(self, **given)


def hyperrule(
    *, num_examples: int, height: int, width: int, architecture: str, preset: str = "paper"
) -> HyperRule:
    """Return the rule's verdict.

    Args:
        num_examples: Labelled images used for training (of a few-shot subset: its size).
        height: Of the dataset's images, pixels.
        width: Of the dataset's images, pixels.
        architecture: Name of the network; the paper's preset gives R152x4 its own resolution.
        preset: `paper` or `repository`.

    Raises:
        ValueError: If the preset is unknown or a number is not positive.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {PRESETS}, got {preset!r}")
    if min(num_examples, height, width) < 1:
        raise ValueError("num_examples, height and width must be positive")
    regime = (
        "small"
        if num_examples < SMALL_DATA
        else "medium"
        if num_examples < MEDIUM_DATA
        else "large"
    )
    steps = _STEPS[regime]
    repository = preset == "repository"
    tenths = (4, 6, 8) if repository and regime == "small" else (3, 6, 9)
    precrop, crop = _resolution(height, width, large=repository or architecture == _LARGEST)
    return HyperRule(
        regime=regime,
        total_steps=steps,
        warmup_steps=(100 if regime == "small" else 500) if repository else 0,
        decay_steps=tuple(steps * tenth // 10 for tenth in tenths),
        mixup_alpha=None if regime == "small" else _MIXUP_ALPHA,
        precrop=precrop,
        crop=crop,
        batch_size=BATCH_SIZE,
        base_lr=BASE_LR,
    )


def _resolution(height: int, width: int, *, large: bool) -> tuple[int, int]:
    if height * width < _SMALL_AREA_PIXELS:
        return 160, 128
    return (512, 480) if large else (448, 384)
