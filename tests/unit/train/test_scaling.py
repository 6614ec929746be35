from __future__ import annotations

import math

import pytest

from bigtransfer.train.scaling import Machines, doublings, scaled, step_seconds, wire_bytes


def machines(**changes: float) -> Machines:
    values = {"per_node": 8, "flops": 4e14, "link": 5e10, "inside": 4.5e11, "losses_per_day": 0.0,
              "checkpoint_seconds": 600.0, **changes}  # fmt: skip
    return Machines(**values)  # type: ignore[arg-type]


def of(nodes: int, **changes: float):  # type: ignore[no-untyped-def]
    return scaled(machines(**changes), nodes, batch_size=4096, steps=1000, image_flops=1.1e12,
                  parameters=10**9)  # fmt: skip


def test_an_all_reduce_that_fits_beside_the_backward_pass_costs_nothing() -> None:
    assert step_seconds(1.0, 0.6) == 1.0
    assert step_seconds(1.0, 1.6) == pytest.approx(2.0)
    assert wire_bytes(10**9, 2) == 4e9
    assert wire_bytes(10**9, 64) == pytest.approx(8e9 * 63 / 64)


def test_efficiency_falls_with_the_share_of_a_device() -> None:
    shares = [of(nodes).efficiency for nodes in (1, 8, 64)]
    assert shares == sorted(shares, reverse=True)
    assert of(1).computing == pytest.approx(512 * 1.1e12 / 4e14)
    # 64 images compute 176 ms; 7.9 GB at 50 GB/s take 157 ms, of which 106 are hidden.
    assert of(8).step == pytest.approx(0.176 + 0.1575 - 0.1056, abs=1e-3)


def test_lost_nodes_cost_half_a_pause_and_a_start_each() -> None:
    calm, rough = of(8), of(8, losses_per_day=1.0)
    assert calm.losses == 0 and calm.lost_seconds == 0
    assert rough.losses == pytest.approx(8 * rough.seconds / 86400)
    assert rough.lost_seconds == pytest.approx(rough.losses * (300 + 720), rel=1e-6)
    assert math.isinf(of(8, losses_per_day=1e6).seconds)


def test_a_number_that_is_no_power_of_two_is_a_row_of_its_own() -> None:
    assert list(doublings(6)) == [1, 2, 4, 6]
    assert list(doublings(8)) == [1, 2, 4, 8]
    assert list(doublings(1)) == [1]
