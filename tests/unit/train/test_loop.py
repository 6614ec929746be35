from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from bigtransfer.data.batches import Squares, TrainBatches
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import BigTransferError
from bigtransfer.model import ResNetV2, create_model
from bigtransfer.train.loop import run_steps
from bigtransfer.train.mixup import mix, mixed_loss, mixup_lambda
from bigtransfer.train.optimizer import make_optimizer
from bigtransfer.train.schedule import Schedule
from bigtransfer.train.state import Progress, WorkFolder
from unit.data.test_shards import packed  # noqa: F401  # a fixture

STEPS = 12


class Killed(Exception):
    pass


def start() -> tuple[ResNetV2, SGD]:
    torch.set_num_threads(1)
    model = create_model("R14x0.25", 3, "small", seed=0)
    return model, make_optimizer(model, momentum=0.9, weight_decay=1e-4)


def train(shards: Path, model: ResNetV2, optimizer: SGD, begin: int, after_step: Any) -> None:
    opened = open_shards(shards)
    squares = Squares(opened, opened.rows("train"), 12)
    batches = TrainBatches(squares, batch_size=8, crop=10, flip=True, seed=0)
    schedule = Schedule(STEPS, 0.1, 3, (8, 10))
    run_steps(model, optimizer, batches, schedule, mixup_alpha=0.2, seed=0, start=begin,
              after_step=after_step)  # fmt: skip


def state(model: ResNetV2, optimizer: SGD) -> list[Tensor]:
    momentum = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    return [tensor.detach().clone() for tensor in (*model.state_dict().values(), *momentum)]


@pytest.mark.parametrize("killed_at", range(1, STEPS))
def test_resumed_run_is_bit_identical_from_every_step(
    packed: Path, tmp_path: Path, killed_at: int  # noqa: F811
) -> None:  # fmt: skip
    model, optimizer = start()
    train(packed, model, optimizer, 0, lambda *_: None)
    expected = state(model, optimizer)

    work = WorkFolder(tmp_path / "work")
    model, optimizer = start()

    def save_every_second_step(step: int, loss: float, rate: float) -> None:
        if step % 2 == 0:
            work.save(model, optimizer, Progress(step, [{"step": step}]))
        if step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        train(packed, model, optimizer, 0, save_every_second_step)

    model, optimizer = start()
    done = work.restore(model, optimizer)
    assert done.step == killed_at - killed_at % 2
    train(packed, model, optimizer, done.step, lambda *_: None)
    for got, want in zip(state(model, optimizer), expected, strict=True):
        assert torch.equal(got, want)


def test_damaged_newest_checkpoint_is_named_and_the_previous_one_used(tmp_path: Path) -> None:
    model, optimizer = start()
    work = WorkFolder(tmp_path / "work")
    for step in (10, 20, 30):
        work.save(model, optimizer, Progress(step))
    assert sorted(p.name for p in work.folder.iterdir()) == ["step-00000020", "step-00000030"]
    path = work.folder / "step-00000030" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    warnings: list[str] = []
    assert work.restore(model, optimizer, warnings.append).step == 20
    assert "passing over a damaged checkpoint" in warnings[0]
    assert "step-00000030/weights.safetensors" in warnings[0]


def test_weight_decay_spares_gains_offsets_and_biases() -> None:
    model, optimizer = start()
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4
    assert optimizer.param_groups[1]["weight_decay"] == 0
    for name, parameter in model.named_parameters():
        is_kernel = name in ("head.weight", "root.weight") or "conv" in name or "proj" in name
        assert (id(parameter) in decayed) == is_kernel


def test_loss_that_is_no_number_stops_the_run(packed: Path) -> None:  # noqa: F811
    model, optimizer = start()
    with torch.no_grad():
        model.head.bias[0] = float("inf")
    with pytest.raises(BigTransferError, match="the loss became nan at step 0; lower 'base_lr'"):
        train(packed, model, optimizer, 0, lambda *_: None)


def test_mixup_is_one_keyed_lambda_for_image_and_loss() -> None:
    assert mixup_lambda(None, 0, 5) == 1.0
    draws = [mixup_lambda(0.1, 0, step) for step in range(400)]
    assert draws == [mixup_lambda(0.1, 0, step) for step in range(400)]
    assert 0.4 < sum(draws) / 400 < 0.6  # Beta(0.1, 0.1) has mean 1/2, deviation 0.46
    x, labels = torch.arange(4.0).view(4, 1), torch.tensor([0, 1, 2, 3])
    assert mix(x, 0.75).flatten().tolist() == [0.75, 1.25, 1.75, 2.25]
    logits = torch.randn(4, 4)
    expected = 0.75 * mixed_loss(logits, labels, 1.0) + 0.25 * mixed_loss(
        logits, labels.flip(0), 1.0
    )
    torch.testing.assert_close(mixed_loss(logits, labels, 0.75), expected)
