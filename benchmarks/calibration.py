"""What a small validation split does to a network that is calibrated, and to one that is too sure.

    python benchmarks/calibration.py

Prints, per number of validation images: how many of 60 calibrated networks get a temperature other
than 1, the worst change of their calibration error on 4,000 other images, and the mean temperature
that ten networks get whose logits are 2.5 times too large.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bigtransfer.metrics.calibration import calibrated, calibration_error, honest_temperature

CLASSES = 5
TOO_SURE = 2.5


def main() -> None:
    """Draw networks and print what becomes of them."""
    print("images   calibrated: moved   worst change   2.5 times too sure: temperature")
    for images in (50, 100, 300, 1000):
        changes, moved = [], 0
        for seed in range(60):
            logits, labels = drawn(seed, images + 4000)
            temperature = honest_temperature(logits[:images], labels[:images])
            correct = logits[images:].argmax(1) == labels[images:]
            raw, told = (
                calibration_error(calibrated(logits[images:], t).max(1), correct)
                for t in (1.0, temperature)
            )
            changes.append(told - raw)
            moved += temperature != 1.0
        sure = [
            honest_temperature(TOO_SURE * logits, labels)
            for logits, labels in (drawn(seed, images) for seed in range(10))
        ]
        worst = f"{100 * max(changes):+.1f} points"
        print(f"{images:>6}   {moved:>11} of 60   {worst:>12}   {np.mean(sure):>10.2f}")


def drawn(seed: int, images: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return logits (N, 5), and labels drawn from their very probabilities."""
    generator = np.random.default_rng(seed)
    logits = (2 * generator.normal(size=(images, CLASSES))).astype(np.float32)
    shares = calibrated(logits, 1.0)
    labels = (generator.random((images, 1)) > shares.cumsum(1)).sum(1).clip(0, CLASSES - 1)
    return logits, labels


if __name__ == "__main__":
    main()
