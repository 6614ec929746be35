"""What a validation split says of a network, and what its answers are read with from then on."""

from __future__ import annotations

from bigtransfer.artifacts.base import Part


class Calibration(Part):
    """Of a network whose images have one label each."""

    images: int
    """Of the validation split."""
    held_out: bool
    """Whether the network was not trained on them; otherwise they say nothing."""
    top1: float
    top5: float
    temperature: float
    """Divides the logits; 1 leaves them as they are."""
    calibration_error: float
    """Expected calibration error at that temperature, in [0, 1]."""
    calibration_error_raw: float
    """The same without a temperature."""
    abstain_below: float | None
    """Answers with a lower probability count as unsure; None: all of them do."""
    calibrated: bool = True
    """Whether the split could say anything of probabilities; all did, it was thought, before
    2026-11-26."""

    @property
    def why_not(self) -> str:
        """Return why its probabilities are not calibrated, for people."""
        if not self.held_out:
            return "it was trained on the validation split too, and nothing is left to calibrate on"
        return f"{self.images:,} images are too few to calibrate"

    @property
    def scores(self) -> dict[str, float]:
        """Return how well the network did, by the name of the metric."""
        return {"top1": self.top1, "top5": self.top5}


class MultiLabelCalibration(Part):
    """Of a network whose images may have several labels."""

    images: int
    held_out: bool
    map: float
    """Mean average precision."""
    micro_f1: float
    thresholds: tuple[float, ...]
    """Probability of each class from which on it is named."""

    @property
    def scores(self) -> dict[str, float]:
        """Return how well the network did, by the name of the metric."""
        return {"map": self.map, "micro_f1": self.micro_f1}
