"""The comparison of two models: what pairs of an image and a seed can prove."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bigtransfer.metrics.paired import gain


def model(random: np.random.Generator, seeds: int, hard: Any, shift: float, luck: float) -> Any:
    logits = 3.5 + shift + hard + random.normal(0, luck, (seeds, 1))
    return (random.random((seeds, len(hard))) < 1 / (1 + np.exp(-logits))).astype(float)


@pytest.mark.parametrize(("seeds", "luck"), [(1, 0.0), (3, 0.0), (3, 0.2), (5, 0.3)])
def test_of_a_hundred_challengers_that_are_no_better_at_most_eight_pass(
    seeds: int, luck: float
) -> None:
    random, passed = np.random.default_rng(0), 0
    for _ in range(1000):
        hard = random.normal(0, 2, 359)
        first, second = (model(random, seeds, hard, 0, luck) for _ in range(2))
        passed += gain(first, second).lowest > 0
    assert passed <= 80


def test_a_true_gain_is_found() -> None:
    random, found = np.random.default_rng(0), []
    for _ in range(200):
        hard = random.normal(0, 2, 359)
        first = model(random, 3, hard, 0, 0.1)
        found.append(gain(first, model(random, 3, hard, 1, 0.1)).lowest > 0)
    assert np.mean(found) > 0.9


def test_images_count_once_however_many_seeds_answer_them() -> None:
    random = np.random.default_rng(0)
    first, second = (random.random((1, 50)) < share for share in (0.5, 0.7))
    one = gain(first.astype(float), second.astype(float))
    same = [np.repeat(scores.astype(float), 5, axis=0) for scores in (first, second)]
    five = gain(*same)
    assert five.mean == pytest.approx(one.mean)
    assert five.error == pytest.approx(one.error)


def test_equal_models_prove_nothing() -> None:
    scores = np.ones((2, 10))
    found = gain(scores, scores)
    assert (found.mean, found.lowest, found.highest) == (0, 0, 0)
    assert found.smallest_proof == 0


@pytest.mark.parametrize("shape", [(1, 1), (0, 5)])
def test_too_little_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="two images and a seed"):
        gain(np.zeros(shape), np.zeros(shape))


def test_what_a_split_could_prove_shrinks_with_its_images() -> None:
    random = np.random.default_rng(0)
    few, many = (
        gain(*((random.random((3, images)) < 0.8).astype(float) for _ in range(2)))
        for images in (100, 10_000)
    )
    assert 8 < few.smallest_proof / many.smallest_proof < 12
