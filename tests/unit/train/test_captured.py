"""Captured steps: the same training as eager ones, with a queue in the place of a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from bigtransfer.model.resnet import Norm
from bigtransfer.train.captured import CapturedStep
from bigtransfer.train.checkpoints import Checkpoints, read_state
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.eager import EagerStep
from bigtransfer.train.loop import DivergedError, StepCallback, TrainStep, run_steps
from bigtransfer.train.loss import loss_named
from bigtransfer.train.optimizer import make_optimizer
from bigtransfer.train.saver import Saver
from bigtransfer.train.schedule import Schedule
from bigtransfer.train.state import MOMENTUM_BUFFER, live_state
from bigtransfer.train.stream import CpuStream, Stream
from fixtures.streams import Queue

STEPS = 6
LOSS = loss_named("softmax")


class Watching(StepCallback):
    """Notes what it is told, and looks at some steps."""

    def __init__(
        self, model: ResNetV2, looks_at: Sequence[int] = (), stream: object = None
    ) -> None:
        self.losses: list[float] = []
        self.sizes: list[int] = []
        self.seen: dict[int, Tensor] = {}
        self._model, self._looks_at = model, looks_at
        self._said = stream.said if isinstance(stream, Queue) else []

    def before_update(self) -> None:
        self._said.append("may update")

    def after_step(self, step: int, loss: float, rate: float) -> None:
        self._said.append(f"noted {step}")
        self.losses.append(loss)

    def looks(self, step: int, reduced: Sequence[float]) -> bool:
        return step in self._looks_at

    def look(self, step: int, reduced: Sequence[float]) -> None:
        self._said.append(f"look {step}")
        self.seen[step] = weights(self._model)

    def ran_out(self, micro_batch_size: int) -> None:
        self.sizes.append(micro_batch_size)


def start(norm: Norm = "gn_ws", dtype: torch.dtype = torch.float32) -> tuple[ResNetV2, SGD]:
    torch.set_num_threads(1)
    model = create_model("R14x0.25", 3, "small", seed=0, norm=norm).to(dtype)
    return model, make_optimizer(model, momentum=0.9, weight_decay=1e-4)


def weights(model: ResNetV2) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.state_dict().values()])


def batches_of(shards: Path) -> TrainBatches:
    opened = open_shards(shards)
    squares = Squares(opened, opened.rows("train"), 12)
    return TrainBatches(squares, batch_size=8, crop=10, flip=True, seed=0)


def train(
    shards: Path,
    model: ResNetV2,
    optimizer: SGD,
    stream: Stream,
    *,
    captured: bool,
    size: int | None = None,
    alpha: float | None = None,
    looks_at: Sequence[int] = (),
    highest_loss: Callable[[], float] = lambda: math.inf,
    callback: Watching | None = None,
) -> Watching:
    compute = ComputeSettings(micro_batch_size=size)
    callback = callback or Watching(model, looks_at, stream)
    step: TrainStep
    if captured:
        step = CapturedStep(
            model, optimizer, LOSS, 8, compute, stream, callback.ran_out, mixes=bool(alpha)
        )
    else:
        step = EagerStep(model, optimizer, LOSS, 8, compute, stream, callback.ran_out)
    with closing(step):
        run_steps(
            step, batches_of(shards), Schedule(STEPS, 0.1, 2, (4,)), mixup_alpha=alpha, seed=0,
            start=0, callback=callback, highest_loss=highest_loss, stream=stream,
        )  # fmt: skip
    return callback


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("alpha", [None, 0.4])
@pytest.mark.parametrize("size", [None, 4, 3])
def test_captured_steps_are_the_eager_ones(
    packed: Path, size: int | None, alpha: float | None, late: bool
) -> None:
    model, optimizer = start()
    eager = train(packed, model, optimizer, CpuStream(), captured=False, size=size, alpha=alpha)
    own, its_optimizer = start()
    stream: Stream = Queue() if late else CpuStream()
    found = train(packed, own, its_optimizer, stream, captured=True, size=size, alpha=alpha)
    assert found.losses == pytest.approx(eager.losses, rel=1e-5)
    assert (weights(model) - weights(own)).abs().max() < 2e-5
    assert len(found.losses) == STEPS


@pytest.mark.parametrize("norm", ["bn_ws", "gn"])
def test_recording_leaves_other_norms_as_they_were(packed: Path, norm: Norm) -> None:
    model, optimizer = start(norm)
    train(packed, model, optimizer, CpuStream(), captured=False)
    own, its_optimizer = start(norm)
    train(packed, own, its_optimizer, CpuStream(), captured=True)
    assert (weights(model) - weights(own)).abs().max() < 2e-5


def test_a_frozen_network_trains_its_head_alone(packed: Path) -> None:
    model, optimizer = start()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    optimizer = make_optimizer(model, momentum=0.9, weight_decay=0.0)
    before = weights(model)
    train(packed, model, optimizer, Queue(), captured=True, size=3)
    changed = int((weights(model) != before).sum())
    assert 0 < changed <= model.head.weight.numel() + model.head.bias.numel()


@pytest.mark.parametrize("captured", [True, False])
def test_a_loss_is_read_while_the_next_step_is_under_way(packed: Path, captured: bool) -> None:
    model, optimizer = start()
    stream = Queue()
    found = train(packed, model, optimizer, stream, captured=captured, looks_at=(4,))
    said = [word for word in stream.said if word != "replay"]
    assert said == [
        "may update", "fetch 0", "read 0", "noted 1",  # by the first loss others are measured
        "may update", "fetch 1",
        "may update", "fetch 2", "read 1", "noted 2",
        "may update", "fetch 3", "read 2", "noted 3", "read 3", "noted 4", "look 4",
        "may update", "fetch 4",
        "may update", "fetch 5", "read 4", "noted 5", "read 5", "noted 6", "look 6",
    ]  # fmt: skip
    again, its_optimizer = start()
    expected = train(packed, again, its_optimizer, CpuStream(), captured=False, looks_at=(4,))
    for step in (4, STEPS):
        assert (found.seen[step] - expected.seen[step]).abs().max() < 2e-5, "weights of that step"


def test_micro_batches_are_replayed_between_standardising_and_the_update(packed: Path) -> None:
    model, optimizer = start()
    stream = Queue()
    train(packed, model, optimizer, stream, captured=True, size=3)
    first = stream.said[: stream.said.index("fetch 0")]
    assert first == ["may update", "replay", "replay", "replay", "replay", "update"]


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("size", [None, 4])
def test_a_first_loss_that_is_no_number_leaves_weights_and_momentum(
    packed: Path, captured: bool, size: int | None
) -> None:
    model, optimizer = start()
    with torch.no_grad():
        model.head.bias[0] = math.inf
    before = weights(model)
    with pytest.raises(DivergedError, match="loss became nan at step 0") as end:
        train(packed, model, optimizer, Queue(), captured=captured, size=size)
    assert end.value.rows == batches_of(packed).rows_of(0).tolist()
    assert torch.equal(weights(model), before)
    momentum = live_state(model, optimizer)["momentum"]
    assert set(momentum) == {name for name, _ in model.named_parameters()}
    assert not any(tensor.any() for tensor in momentum.values())


@pytest.mark.parametrize("captured", [True, False])
def test_a_loss_above_the_limit_is_left_out_on_the_device(packed: Path, captured: bool) -> None:
    model, optimizer = start()
    limits = iter([math.inf] * 3 + [0.1] * 100)
    stream = Queue()
    callback = Watching(model, (), stream)
    with pytest.raises(DivergedError, match=r"more than 0\.1, at step") as end:
        train(packed, model, optimizer, stream, captured=captured, callback=callback,
              highest_loss=lambda: next(limits))  # fmt: skip
    good = end.value.step
    assert good == 3
    expected, its_optimizer = start()
    seen = train(
        packed, expected, its_optimizer, CpuStream(), captured=False, looks_at=range(STEPS + 1)
    ).seen
    assert (weights(model) - seen[good]).abs().max() < 2e-5, "nor is a later step done"
    assert len(callback.losses) == good


def test_memory_that_runs_out_halves_the_micro_batch_and_records_again(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, optimizer = start(dtype=torch.float64)
    whole = train(packed, expected, optimizer, CpuStream(), captured=False)
    model, optimizer = start(dtype=torch.float64)
    forward = model.forward

    def hungry(x: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(x)

    monkeypatch.setattr(model, "forward", hungry)
    found = train(packed, model, optimizer, Queue(), captured=True)
    assert found.sizes == [4, 2]
    assert found.losses == pytest.approx(whole.losses, rel=1e-6)  # the rate is float32 there


def test_one_image_too_many_for_the_memory_says_what_to_change(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = start()

    def hungry(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(model, "forward", hungry)
    with pytest.raises(InfrastructureError, match="memory runs out with a single image; choose"):
        train(packed, model, optimizer, Queue(), captured=True)


def test_a_checkpoint_holds_the_step_it_is_of_though_the_next_is_told(
    packed: Path, tmp_path: Path
) -> None:
    """The queue holds what was told; the saver's copy must come before the next update."""
    model, optimizer = start()
    stream = Queue()
    saver = Saver(Checkpoints(tmp_path / "run", None, print))
    journal = tmp_path / "journal.jsonl"
    journal.write_text("")

    class SavesAtThree(Watching):
        def before_update(self) -> None:
            saver.before_update()
            saver.check()

        def look(self, step: int, reduced: Sequence[float]) -> None:
            super().look(step, reduced)
            if step == 3:
                saver.begin(step, live_state(model, optimizer), {"code": "x"}, journal, None)

    callback = SavesAtThree(model, (3,), stream)
    train(packed, model, optimizer, stream, captured=True, callback=callback)
    saver.finish()
    kept = read_state(tmp_path / "run" / "step-00000003")
    assert torch.equal(
        torch.cat([kept["weights"][name].flatten() for name in model.state_dict()]),
        callback.seen[3],
    )
    assert not torch.equal(callback.seen[3], weights(model))


def test_a_closed_step_leaves_the_optimiser_as_it_was(packed: Path) -> None:
    model, optimizer = start()
    train(packed, model, optimizer, Queue(), captured=True)
    assert not hasattr(optimizer, "found_inf")
    assert all(isinstance(group["lr"], float) for group in optimizer.param_groups)
    assert all(MOMENTUM_BUFFER in state for state in optimizer.state.values())
