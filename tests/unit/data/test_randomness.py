from __future__ import annotations

import numpy as np

from bigtransfer.data.randomness import keyed_uniform


def test_draws_are_uniform_and_uncorrelated_over_neighbouring_keys() -> None:
    draws = keyed_uniform(0, np.arange(100)[:, None], np.arange(1000))
    assert draws.shape == (100, 1000)
    assert draws.min() >= 0
    assert draws.max() < 1
    histogram = np.histogram(draws, bins=20, range=(0, 1))[0] / draws.size
    assert np.abs(histogram - 0.05).max() < 0.003  # six standard deviations
    for shifted in (draws[1:, :] * draws[:-1, :], draws[:, 1:] * draws[:, :-1]):
        assert abs(shifted.mean() - 0.25) < 0.004


def test_draw_depends_on_every_key_and_on_nothing_else() -> None:
    one = keyed_uniform(1, 2, 3)
    assert one == keyed_uniform(1, 2, np.array([3]))[0]
    assert len({float(keyed_uniform(*key)) for key in [(1, 2, 3), (2, 1, 3), (1, 3, 2)]}) == 3
