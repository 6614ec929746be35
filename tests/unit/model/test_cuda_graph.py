"""Which forward passes are replayed, with a recording that runs the function in a GPU's place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bigtransfer.model import create_model, cuda_graph
from bigtransfer.model.cuda_graph import ReplayedForward, obstacle, replayed

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_shape_that_comes_again_is_replayed_and_a_last_smaller_batch_is_not() -> None:
    recorded: list[Callable[[], None]] = []
    replays: list[int] = []

    def record(function: Callable[[], None]) -> Callable[[], None]:
        number = len(recorded)
        recorded.append(function)

        def replay() -> None:
            replays.append(number)
            function()

        return replay

    model = create_model("R14x0.25", 3, "small", seed=0).eval()
    torch.nn.init.normal_(model.head.weight)
    batches = [torch.randn(4, 3, 10, 10) for _ in range(4)] + [torch.randn(1, 3, 10, 10)]
    with torch.no_grad():
        forward = ReplayedForward(model, record)
        found = [forward(x).clone() for x in batches]
        expected = [model(x) for x in batches]
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other)
    assert (len(recorded), replays) == (1, [0, 0, 0])


def test_a_few_shapes_are_recorded_and_no_more() -> None:
    recorded: list[Callable[[], None]] = []

    def record(function: Callable[[], None]) -> Callable[[], None]:
        recorded.append(function)
        return function

    forward = ReplayedForward(lambda x: x + 1, record)
    for size in range(1, 9):
        for _ in range(3):
            assert torch.equal(forward(torch.zeros(size)), torch.ones(size))
    assert len(recorded) == 4


def test_on_a_cpu_a_function_is_itself() -> None:
    def forward(x: Tensor) -> Tensor:
        return x

    assert replayed(forward, None) is replayed(forward, CPU) is forward


def test_what_is_in_the_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(cuda_graph, "HAS_TRITON", True)
    assert obstacle(GPU) == "Tesla V100, which is older than Ampere"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert obstacle(GPU) is None
    torch.use_deterministic_algorithms(True)
    try:
        assert str(obstacle(GPU)).startswith("deterministic algorithms")
    finally:
        torch.use_deterministic_algorithms(False)
