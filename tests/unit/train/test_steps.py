"""Each kind of step: when it is taken, and what it owes to the loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from bigtransfer.data.batches import Squares, TrainBatches
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import ConfigError
from bigtransfer.model import ResNetV2, create_model
from bigtransfer.train import cuda_graph
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.cuda_graph import CapturedStep
from bigtransfer.train.devices import Device
from bigtransfer.train.eager import EagerStep
from bigtransfer.train.group import Group
from bigtransfer.train.loop import TrainStep
from bigtransfer.train.loss import loss_named
from bigtransfer.train.optimizer import make_optimizer
from bigtransfer.train.steps import choose_step

TPU, GPU, PAIR = Device(is_tpu=True), Device(torch.device("cuda")), Group(0, 2)
LOSS = loss_named("softmax")


def start() -> tuple[ResNetV2, SGD]:
    torch.set_num_threads(1)
    model = create_model("R14x0.25", 3, "small", seed=0)
    return model, make_optimizer(model, momentum=0.9, weight_decay=1e-4)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def batches(packed: Path) -> TrainBatches:
    opened = open_shards(packed)
    squares = Squares(opened, opened.rows("train"), 12)
    return TrainBatches(squares, batch_size=8, crop=10, flip=True, seed=0)


def test_steps_are_eager_and_in_training_mode_where_nothing_else_is_asked_for() -> None:
    model, optimizer = start()
    model.eval()
    step = choose_step(model, optimizer, LOSS, 8)
    assert isinstance(step, EagerStep)
    assert model.training


@pytest.mark.parametrize(
    ("compute", "mixes", "message"),
    [
        (ComputeSettings(cuda_graph=True), False, "one process on one GPU; set it to false"),
        (ComputeSettings(GPU, PAIR, cuda_graph=True), False, "one process on one GPU"),
        (ComputeSettings(GPU, cuda_graph=True), True, "neither MixUp nor micro_batch_size"),
        (ComputeSettings(GPU, micro_batch_size=2, cuda_graph=True), False, "neither MixUp nor"),
        (ComputeSettings(TPU, PAIR), False, "one process for all devices of a host"),
        (ComputeSettings(TPU), True, "without micro_batch_size and MixUp"),
        (ComputeSettings(TPU, micro_batch_size=2), False, "without micro_batch_size and MixUp"),
        (ComputeSettings(TPU, precision="bfloat16"), False, "goes with precision: float32"),
    ],
)
def test_settings_that_do_not_go_with_each_other_are_named(
    compute: ComputeSettings, mixes: bool, message: str
) -> None:
    model, optimizer = start()
    with pytest.raises(ConfigError, match=message):
        choose_step(model, optimizer, LOSS, 8, compute, mixes=mixes)


def test_a_compiled_network_is_refused_on_a_tpu() -> None:
    model, optimizer = start()
    with pytest.raises(ConfigError, match="compiles the step by itself; set compile to false"):
        choose_step(nn.Sequential(model), optimizer, LOSS, 8, ComputeSettings(TPU))


@pytest.mark.parametrize("size", [None, 3])
def test_weights_change_after_before_update_only(batches: TrainBatches, size: int | None) -> None:
    model, optimizer = start()
    before = weights(model)
    told: list[float | None] = []

    def stops(loss: float | None) -> None:
        told.append(loss)
        assert torch.equal(weights(model), before)
        raise KeyboardInterrupt

    with closing(
        choose_step(model, optimizer, LOSS, 8, ComputeSettings(micro_batch_size=size))
    ) as step:
        with pytest.raises(KeyboardInterrupt):
            step(batches.batch(0), 0.1, 1.0, stops)
        assert torch.equal(weights(model), before)
        told_again: list[float | None] = []
        loss = step(batches.batch(0), 0.1, 1.0, told_again.append)
    assert told == told_again == [loss]
    assert not torch.equal(weights(model), before)


def test_a_closed_step_leaves_backward_as_it_was(batches: TrainBatches) -> None:
    model, optimizer = start()
    step = choose_step(model, optimizer, LOSS, 8)
    step(batches.batch(0), 0.1, 1.0, lambda loss: None)
    step.close()
    before = weights(model)
    model(torch.zeros(1, 3, 10, 10)).sum().backward()
    assert torch.equal(weights(model), before), "a look at gradients must not train"
    assert model.head.weight.grad is not None


class NotRecorded:
    """Stands in for a CUDA graph on a CPU: does what would be replayed."""

    def __init__(self, step: Callable[..., Tensor], optimizer: SGD, inputs: list[Tensor]) -> None:
        self._step, self._optimizer = step, optimizer
        assert all(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)

    def __call__(self, *inputs: Tensor) -> Tensor:
        self._optimizer.zero_grad()
        return self._step(*inputs)


def test_captured_steps_are_the_eager_ones(
    batches: TrainBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graph, "Recording", NotRecorded)

    def trained(make: Callable[..., TrainStep], **more: Any) -> tuple[list[float], Tensor]:
        model, optimizer = start()
        step = make(model, optimizer, LOSS, **more)
        rates = (0.05, 0.1, 0.02)
        losses = [step(batches.batch(n), r, 1.0, lambda _: None) for n, r in enumerate(rates)]
        step.write_back()
        return losses, weights(model)

    expected, its_weights = trained(
        EagerStep, batch_size=8, compute=ComputeSettings(), ran_out=lambda images: None
    )
    losses, own_weights = trained(CapturedStep, compute=ComputeSettings())
    assert losses == pytest.approx(expected, rel=1e-6)
    assert (own_weights - its_weights).abs().max() < 1e-6
