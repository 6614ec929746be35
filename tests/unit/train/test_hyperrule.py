"""The rule's table: arXiv 1912.11370, section 3.3, and google-research/big_transfer @140de6e."""

from __future__ import annotations

from typing import Any

import pytest

from bigtransfer.train.hyperrule import hyperrule


def rule(n: int, height: int = 200, width: int = 200, **more: Any) -> Any:
    return hyperrule(
        num_examples=n, height=height, width=width, **{"architecture": "R50x1", **more}
    )


@pytest.mark.parametrize(
    ("n", "steps", "paper", "repository", "warmup", "mixup"),
    [
        (1, 500, (150, 300, 450), (200, 300, 400), 100, None),
        (19_999, 500, (150, 300, 450), (200, 300, 400), 100, None),
        (20_000, 10_000, (3000, 6000, 9000), (3000, 6000, 9000), 500, 0.1),
        (499_999, 10_000, (3000, 6000, 9000), (3000, 6000, 9000), 500, 0.1),
        (500_000, 20_000, (6000, 12_000, 18_000), (6000, 12_000, 18_000), 500, 0.1),
    ],
)
def test_schedule_by_data_size(
    n: int, steps: int, paper: Any, repository: Any, warmup: int, mixup: float | None
) -> None:
    one, other = rule(n, preset="paper"), rule(n, preset="repository")
    assert (one.total_steps, one.decay_steps, one.warmup_steps) == (steps, paper, 0)
    assert (other.total_steps, other.decay_steps, other.warmup_steps) == (steps, repository, warmup)
    assert one.mixup_alpha == other.mixup_alpha == mixup
    assert (one.batch_size, one.base_lr) == (512, 0.003)


@pytest.mark.parametrize(
    ("height", "width", "architecture", "preset", "sizes"),
    [
        (95, 96, "R50x1", "paper", (160, 128)),
        (72, 127, "R50x1", "repository", (160, 128)),
        (96, 96, "R50x1", "paper", (448, 384)),
        (96, 96, "R50x1", "repository", (512, 480)),
        (96, 96, "R152x4", "paper", (512, 480)),
        (32, 32, "R152x4", "paper", (160, 128)),
    ],
)
def test_resolution_by_image_area(
    height: int, width: int, architecture: str, preset: str, sizes: tuple[int, int]
) -> None:
    verdict = rule(100, height, width, architecture=architecture, preset=preset)
    assert (verdict.precrop, verdict.crop) == sizes


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (50, 0.0015), (99, 0.00297), (100, 0.003), (200, 0.003), (201, 0.0003),
     (300, 0.0003), (301, 3e-5), (400, 3e-5), (401, 3e-6), (499, 3e-6)],
)  # fmt: skip
def test_rates_of_the_repositorys_small_schedule(step: int, rate: float) -> None:
    assert rule(100, preset="repository").learning_rate(step) == pytest.approx(rate, rel=1e-12)


def test_new_length_keeps_the_shape() -> None:
    verdict = rule(100, preset="repository").overridden(total_steps=80, crop=16, base_lr=None)
    assert (verdict.warmup_steps, verdict.decay_steps) == (16, (32, 48, 64))
    assert (verdict.crop, verdict.base_lr, verdict.batch_size) == (16, 0.003, 512)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="preset must be one of"):
        rule(100, preset="papers")
    with pytest.raises(ValueError, match="must be positive"):
        rule(0)
