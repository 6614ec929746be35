"""The step as a JAX program, on XLA's CPU backend with four virtual devices."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fixtures.project import PROJECT, environment

SCRIPT = """
import sys
from pathlib import Path
import jax, torch
from bigtransfer.data.batches import Squares, TrainBatches
from bigtransfer.data.shards import open_shards
from bigtransfer.model import create_model
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.devices import choose_device
from bigtransfer.train.loop import StepCallback, run_steps
from bigtransfer.train.loss import loss_named
from bigtransfer.train.optimizer import make_optimizer
from bigtransfer.train.schedule import Schedule
from bigtransfer.train.steps import choose_step

torch.set_num_threads(1)
class Losses(StepCallback):
    def __init__(self): self.losses = []
    def after_step(self, step, loss, rate): self.losses.append(loss)

def train(compute, loss):
    model = create_model("R14x0.25", 3, "small", seed=0)
    optimizer = make_optimizer(model, momentum=0.9, weight_decay=1e-4)
    shards = open_shards(Path(sys.argv[1]))
    squares = Squares(shards, shards.rows("train"), 12)
    batches = TrainBatches(squares, batch_size=8, crop=10, flip=True, seed=0)
    callback = Losses()
    step = choose_step(model, optimizer, loss_named(loss), 8, compute)
    run_steps(step, batches, Schedule(4, 0.02, 2, ()), mixup_alpha=None, seed=0, start=0,
              callback=callback)
    step.write_back()
    momentum = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    return callback.losses, list(model.parameters()), momentum

assert len(jax.devices()) == 4
for loss in ("softmax", "sigmoid"):
    expected, weights, momentum = train(ComputeSettings(), loss)
    found, own, its_momentum = train(ComputeSettings(choose_device("tpu")), loss)
    assert abs(found[0] - expected[0]) < 1e-5, (found, expected)
    assert max(abs(a - b) for a, b in zip(found, expected)) < 2e-3, (found, expected)
    for a, b in zip(weights + momentum, own + its_momentum):
        assert (a - b).norm() <= 0.02 * a.norm() + 1e-4, (a.shape, (a - b).norm(), a.norm())
print("equal")
"""


@pytest.mark.skipif(find_spec("torchax") is None, reason="torchax is not here: make .venv/tpu")
@pytest.mark.long
def test_jax_program_does_the_steps_of_the_loop(packed: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(packed)], capture_output=True, text=True, check=False,
        env=environment(PYTHONPATH=str(PROJECT), JAX_PLATFORMS="cpu",
                        XLA_FLAGS="--xla_force_host_platform_device_count=4"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.endswith("equal\n")
