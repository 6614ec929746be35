"""Each kind of step: when it is taken, and what it owes to the loop."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from bigtransfer.data.batches import Squares, TrainBatches
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import ConfigError
from bigtransfer.model import ResNetV2, create_model, cuda_graph
from bigtransfer.train.captured import CapturedStep
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.devices import Device
from bigtransfer.train.eager import EagerStep
from bigtransfer.train.group import Group
from bigtransfer.train.loop import StepValues
from bigtransfer.train.loss import loss_named
from bigtransfer.train.optimizer import make_optimizer
from bigtransfer.train.steps import choose_step
from bigtransfer.train.stream import CpuStream, DeviceBatch

TPU, GPU, PAIR = Device(is_tpu=True), Device(torch.device("cuda")), Group(0, 2)
LOSS = loss_named("softmax")


def start() -> tuple[ResNetV2, SGD]:
    torch.set_num_threads(1)
    model = create_model("R14x0.25", 3, "small", seed=0)
    return model, make_optimizer(model, momentum=0.9, weight_decay=1e-4)


def on_cpu(batches: TrainBatches, step: int) -> DeviceBatch:
    return CpuStream().upload(batches.batch(step))


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
        (ComputeSettings(cuda_graph=True), False, "a device that is no GPU; set it to auto or"),
        (ComputeSettings(GPU, PAIR, cuda_graph=True), True, "not go with several processes"),
        (ComputeSettings(GPU, compiled=True, cuda_graph=True), False, "go with compile: true"),
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
            step(on_cpu(batches, 0), StepValues(0.1), stops)
        assert torch.equal(weights(model), before)
        told_again: list[float | None] = []
        loss = step(on_cpu(batches, 0), StepValues(0.1), told_again.append)()
    assert told == told_again == [loss]
    assert not torch.equal(weights(model), before)


def test_a_closed_step_leaves_backward_as_it_was(batches: TrainBatches) -> None:
    model, optimizer = start()
    step = choose_step(model, optimizer, LOSS, 8)
    step(on_cpu(batches, 0), StepValues(0.1), lambda loss: None)
    step.close()
    before = weights(model)
    model(torch.zeros(1, 3, 10, 10)).sum().backward()
    assert torch.equal(weights(model), before), "a look at gradients must not train"
    assert model.head.weight.grad is not None


@pytest.mark.parametrize(
    ("compute", "capability", "line"),
    [
        (ComputeSettings(GPU), (8, 0), None),
        (ComputeSettings(GPU), (7, 5), "older than Ampere"),
        (ComputeSettings(GPU, PAIR), (9, 0), "several processes"),
        (ComputeSettings(GPU, compiled=True), (9, 0), "compile: true"),
        (ComputeSettings(GPU, cuda_graph=False), (9, 0), None),
        (ComputeSettings(), (9, 0), None),
    ],
)
def test_steps_of_a_gpu_are_captured_where_they_can_be(
    compute: ComputeSettings,
    capability: tuple[int, int],
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(cuda_graph, "HAS_TRITON", True)
    said: list[str] = []
    model, optimizer = start()
    step = choose_step(model, optimizer, LOSS, 8, compute, stream=CpuStream(), say=said.append)
    captured = compute.device.is_cuda and line is None and compute.cuda_graph == "auto"
    assert isinstance(step, CapturedStep if captured else EagerStep)
    assert len(said) == (line is not None)
    assert not said or (line or "") in said[0]


def test_a_gpu_without_triton_runs_eagerly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "HAS_TRITON", False)
    said: list[str] = []
    model, optimizer = start()
    step = choose_step(
        model, optimizer, LOSS, 8, ComputeSettings(GPU), stream=CpuStream(), say=said.append
    )
    assert isinstance(step, EagerStep)
    assert said == ["steps are not captured as CUDA graphs: an installation without Triton"]
