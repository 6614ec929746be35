"""The loop: any division of the batch is the same step; what is no step stops it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from bigtransfer.data.batches import Squares, TrainBatches
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import InfrastructureError
from bigtransfer.model import ResNetV2, create_model
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.loop import DivergedError, StepCallback, run_steps
from bigtransfer.train.loss import loss_named, sigmoid_cross_entropy
from bigtransfer.train.mixup import mix, mixed_loss, mixup_lambda
from bigtransfer.train.optimizer import make_optimizer
from bigtransfer.train.schedule import Schedule
from bigtransfer.train.steps import choose_step

STEPS = 50


class Noting(StepCallback):
    """Keeps the losses, and the gradient of the first step where there is one."""

    def __init__(self, model: ResNetV2) -> None:
        self.losses: list[float] = []
        self.sizes: list[int] = []
        self.gradient: list[Tensor] = []
        self._model = model

    def before_update(self) -> None:
        gradients = [p.grad for p in self._model.parameters()]
        if not self.gradient:
            self.gradient = [g.clone() for g in gradients if g is not None]

    def after_step(self, step: int, loss: float, rate: float) -> None:
        self.losses.append(loss)

    def ran_out(self, micro_batch_size: int) -> None:
        self.sizes.append(micro_batch_size)


def start(dtype: torch.dtype = torch.float32) -> tuple[ResNetV2, SGD]:
    torch.set_num_threads(1)
    model = create_model("R14x0.25", 3, "small", seed=0).to(dtype)
    return model, make_optimizer(model, momentum=0.9, weight_decay=1e-4)


def batches_of(shards: Path) -> TrainBatches:
    opened = open_shards(shards)
    squares = Squares(opened, opened.rows("train"), 12)
    return TrainBatches(squares, batch_size=8, crop=10, flip=True, seed=0)


def train(
    shards: Path,
    model: ResNetV2,
    optimizer: SGD,
    steps: int = STEPS,
    compute: ComputeSettings | None = None,
    highest_loss: Callable[[], float] = lambda: math.inf,
) -> Noting:
    callback, batches, loss = Noting(model), batches_of(shards), loss_named("softmax")
    with closing(
        choose_step(model, optimizer, loss, 8, compute, mixes=True, ran_out=callback.ran_out)
    ) as step:
        run_steps(
            step, batches, Schedule(steps, 0.1, 3, (8, 10)), mixup_alpha=0.2, seed=0, start=0,
            callback=callback, highest_loss=highest_loss,
        )  # fmt: skip
    return callback


def weights(model: ResNetV2) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_micro_batches_are_the_same_training_in_float64(packed: Path, size: int) -> None:
    model, optimizer = start(torch.float64)
    whole = train(packed, model, optimizer)
    divided, its_optimizer = start(torch.float64)
    parts = train(packed, divided, its_optimizer, compute=ComputeSettings(micro_batch_size=size))
    assert max(abs(a - b) for a, b in zip(whole.losses, parts.losses, strict=True)) < 1e-9
    assert (weights(model) - weights(divided)).abs().max() < 1e-9


@pytest.mark.parametrize("size", [1, 2, 4])
def test_first_step_in_float32_differs_by_rounding_alone(packed: Path, size: int) -> None:
    model, optimizer = start()
    # Eight images in one pass, but updated after the backward pass: gradients can be seen.
    whole = train(packed, model, optimizer, 1, compute=ComputeSettings(micro_batch_size=7))
    divided, its_optimizer = start()
    parts = train(packed, divided, its_optimizer, 1, compute=ComputeSettings(micro_batch_size=size))
    assert abs(whole.losses[0] - parts.losses[0]) < 1e-6
    for a, b in zip(whole.gradient, parts.gradient, strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm()


@pytest.mark.parametrize("at", [0, 7])
def test_out_of_memory_halves_the_micro_batch_and_leaves_the_result(
    packed: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, optimizer = start(torch.float64)
    whole = train(packed, expected, optimizer, 12)
    model, optimizer = start(torch.float64)
    forward, passes = model.forward, 0

    def hungry(x: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        if passes > at and len(x) > 2:  # from step `at` on, two images fit
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(x)

    monkeypatch.setattr(model, "forward", hungry)
    noted = train(packed, model, optimizer, 12)
    assert noted.sizes == [4, 2]
    assert max(abs(a - b) for a, b in zip(whole.losses, noted.losses, strict=True)) < 1e-9
    assert (weights(model) - weights(expected)).abs().max() < 1e-9


def test_one_image_too_many_for_the_memory_says_what_to_change(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = start()

    def hungry(x: Tensor) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 EB")

    monkeypatch.setattr(model, "forward", hungry)
    with pytest.raises(InfrastructureError, match="memory runs out with a single image; choose"):
        train(packed, model, optimizer)


def test_loss_that_is_no_number_stops_the_run_before_the_update(packed: Path) -> None:
    model, optimizer = start()
    with torch.no_grad():
        model.head.bias[0] = float("inf")
    before = weights(model)
    with pytest.raises(DivergedError, match=r"loss became nan at step 0; lower 'base_lr'") as end:
        train(packed, model, optimizer)
    assert torch.equal(weights(model), before)
    batches = batches_of(packed)
    assert end.value.rows == batches.rows_of(0).tolist()
    assert batches.path_of(end.value.rows[0]) in str(end.value)


@pytest.mark.parametrize("compute", [ComputeSettings(), ComputeSettings(micro_batch_size=3)])
def test_exploding_loss_stops_the_run(packed: Path, compute: ComputeSettings) -> None:
    model, optimizer = start()
    with pytest.raises(DivergedError, match=r"the loss became 1\.09861, more than 1\.05, at step"):
        train(packed, model, optimizer, compute=compute, highest_loss=lambda: 1.05)


def test_weight_decay_spares_gains_offsets_and_biases() -> None:
    model, optimizer = start()
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4
    assert optimizer.param_groups[1]["weight_decay"] == 0
    for name, parameter in model.named_parameters():
        is_kernel = name in ("head.weight", "root.weight") or "conv" in name or "proj" in name
        assert (id(parameter) in decayed) == is_kernel


def test_mixup_is_one_keyed_lambda_for_image_and_loss() -> None:
    assert mixup_lambda(None, 0, 5) == 1.0
    draws = [mixup_lambda(0.1, 0, step) for step in range(400)]
    assert draws == [mixup_lambda(0.1, 0, step) for step in range(400)]
    assert 0.4 < sum(draws) / 400 < 0.6  # Beta(0.1, 0.1) has mean 1/2, deviation 0.46
    x, labels = torch.arange(4.0).view(4, 1), torch.tensor([0, 1, 2, 3])
    assert mix(x, x.flip(0), 0.75).flatten().tolist() == [0.75, 1.25, 1.75, 2.25]
    logits, loss = torch.randn(4, 4), loss_named("softmax")
    expected = 0.75 * loss(logits, labels) + 0.25 * loss(logits, labels.flip(0))
    torch.testing.assert_close(mixed_loss(loss, logits, labels, labels.flip(0), 0.75), expected)


def test_sigmoid_loss_sums_over_classes_and_averages_over_images() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, -2.0]])
    several = torch.tensor([[0, 2], [1, -1]])  # classes 0 and 2; class 1 alone
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum() / 2
    torch.testing.assert_close(sigmoid_cross_entropy(logits, several), expected)
    single = torch.tensor([2, 1])
    torch.testing.assert_close(
        sigmoid_cross_entropy(logits, single),
        sigmoid_cross_entropy(logits, single.unsqueeze(1)),
    )
