from __future__ import annotations

from typing import Any

import pytest

from bigtransfer.artifacts.report import Reliability
from bigtransfer.report.words import (
    abstention_in_words,
    effort_in_words,
    listing,
    size,
    training_in_words,
)
from fixtures.models import CALIBRATION
from fixtures.reports import scored_cell

RULE: dict[str, Any] = {
    "regime": "small", "total_steps": 500, "warmup_steps": 0, "decay_steps": [150, 300, 450],
    "mixup_alpha": None, "precrop": 448, "crop": 384, "batch_size": 512, "base_lr": 0.003,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {},
            "500 steps of 512 images at 384 px cut from 448 px, learning rate 0.003, divided by 10 "
            "after 150, 300 and 450 steps, no MixUp",
        ),
        (
            {"total_steps": 20_000, "warmup_steps": 500, "decay_steps": [6000], "mixup_alpha": 0.1},
            "20,000 steps of 512 images at 384 px cut from 448 px, learning rate 0.003 after a "
            "warm-up of 500 steps, divided by 10 after 6,000 steps, MixUp with alpha 0.1",
        ),
        (
            {"precrop": 384, "decay_steps": []},
            "500 steps of 512 images at 384 px, not cut, learning rate 0.003, no MixUp",
        ),
    ],
)
def test_a_recipe_is_a_sentence(changes: dict[str, Any], said: str) -> None:
    assert training_in_words({**RULE, **changes}) == said


def test_another_recipe_is_listed() -> None:
    assert training_in_words({"head_strength": 0.1, "crop": None}) == "head strength 0.1"
    assert training_in_words({}) == ""


def reliability(**changes: Any) -> Reliability:
    return Reliability(
        error_raw=0.1, error=0.1, bins=(), answered=0.248, answered_accuracy=0.924, asked=0.95
    ).model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "calibration", "said"),
    [
        (
            {}, {},
            "Asked for 95 % right, got 92.4 % (95 % interval 88.8 to 94.9 %), answers 24.8 % of "
            "the test images; below a probability of 60.0 % it says that it is unsure. Taking all "
            "its answers, it is right in 63.2 %.",
        ),
        (
            {"asked": None}, {},
            "It answers 24.8 % of the test images and is right in 92.4 % (95 % interval 88.8 to "
            "94.9 %); below",
        ),
        (
            {"answered": 0.0, "answered_accuracy": None}, {"abstain_below": None},
            "Asked for 95 % right, it answers 0.0 % of the test images: on the validation split no "
            "threshold makes its answers right so often, and each counts as unsure. Taking all its "
            "answers, it is right in 63.2 %.",
        ),
        (
            {"answered": 0.0, "answered_accuracy": None, "asked": None}, {"abstain_below": None},
            "It answers 0.0 % of the test images: on the validation split no threshold makes its "
            "answers right often enough,",
        ),
        (
            {"answered": 0.0, "answered_accuracy": None}, {},
            "Asked for 95 % right, it answers 0.0 % of the test images: none has a probability of "
            "60.0 %,",
        ),
        (
            {"answered": 0.0, "answered_accuracy": None},
            {"calibrated": False, "images": 20, "abstain_below": None},
            "Not calibrated: 20 images are too few to calibrate. So no answer is called sure: it "
            "answers 0.0 % of the test images. Taking all its answers, it is right in 63.2 %.",
        ),
    ],
)  # fmt: skip
def test_abstention_is_a_sentence(
    changes: dict[str, Any], calibration: dict[str, Any], said: str
) -> None:
    own = CALIBRATION.model_copy(update=calibration)
    assert abstention_in_words(reliability(**changes), own, 0.632, 1170).startswith(said)


def test_effort_is_said_as_far_as_it_is_known() -> None:
    cell = scored_cell("upstream", "full", 0, 0.9, 0.8)
    assert effort_in_words([cell]) == ""
    known = [
        cell.model_copy(
            update={"seconds": 60.0 * own, "device": "a GPU", "peak_memory_bytes": own * 10**9}
        )
        for own in (3, 2)
    ]
    assert effort_in_words(known) == "2 min to 3 min each on a GPU, at most 3.0 GB of memory"
    assert effort_in_words(known[:1]) == "3 min on a GPU, at most 3.0 GB of memory"
    alone = [cell.model_copy(update={"seconds": 7.0})]
    assert effort_in_words(alone) == "7 s"


def test_numbers_for_people() -> None:
    assert [listing(items) for items in ((), (1,), (1, 2), (1000, 2, 3))] == [
        "", "1", "1 and 2", "1,000, 2 and 3",
    ]  # fmt: skip
    assert [size(n) for n in (999, 1500, 2 * 10**9)] == ["999 B", "1.5 kB", "2.0 GB"]
