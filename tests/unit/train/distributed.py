"""Started by `torchrun` from test_distributed.py: trains, and the leader notes what came out.

With --float64 it is the bare loop (`run_steps`) in double precision; else `pretrain` as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bigtransfer.data.batches import Batch, Squares, TrainBatches
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import BigTransferError
from bigtransfer.model import create_model
from bigtransfer.train.group import open_group
from bigtransfer.train.loop import Machine, Steps, Watcher, run_steps
from bigtransfer.train.parallel import spread, whole_state
from bigtransfer.train.pretrain import Outputs, pretrain
from bigtransfer.train.schedule import Schedule
from unit.train.conftest import small_params


class Losses(Watcher):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_step(self, step: int, loss: float, rate: float, wished: Sequence[float]) -> None:
        self.losses.append(loss)


def loop(arguments: argparse.Namespace) -> None:
    """Train 50 steps in float64, a batch of 8 over the processes."""
    torch.set_num_threads(1)
    with open_group(torch.device("cpu")) as group:
        model = create_model("R14x0.25", 3, "small", seed=group.rank).double()  # rank 0's counts
        called, optimizer = spread(
            model, None, group, parallel=arguments.parallel, compiled=False, momentum=0.9,
            weight_decay=1e-4,
        )  # fmt: skip
        shards = open_shards(arguments.shards)
        squares = Squares(shards, shards.rows("train"), 12)
        batches = TrainBatches(
            squares, batch_size=8, crop=10, flip=True, seed=0, rank=group.rank,
            world_size=group.world_size,
        )  # fmt: skip
        watcher = Losses()
        run_steps(
            called, optimizer, batches, Schedule(50, 0.1, 3, (20, 35)), mixup_alpha=None, seed=0,
            start=0, watcher=watcher,
            machine=Machine(group=group, micro_batch_size=arguments.micro_batch_size),
        )  # fmt: skip
        state = whole_state(model, optimizer)
        if group.leads:
            torch.save(
                {"losses": watcher.losses, **{k: dict(v) for k, v in state.items()}},
                arguments.output / "state.pt",
            )


def recipe(arguments: argparse.Namespace) -> None:
    """Pretrain; SIGTERM to the leader at a step, where asked."""
    points: list[Any] = []

    def log(step: int, values: dict[str, float]) -> None:
        points.append([step, values])
        if step == arguments.stop_at and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    if arguments.slow:
        do = Steps.run

        def slowly(self: Steps, step: int, batch: Batch) -> None:
            time.sleep(arguments.slow)
            do(self, step, batch)

        Steps.run = slowly  # type: ignore[method-assign]
    out = arguments.output
    seen = {"world_size": int(os.environ.get("WORLD_SIZE", "1"))}
    (out / f"seen-{os.getpid()}.json").write_text(json.dumps(seen))
    outputs = Outputs(out / "checkpoint", out / "m.json", out / "h.csv")
    params = small_params(parallel=arguments.parallel, checkpoint_steps=5)
    pretrain(params, arguments.shards, arguments.shards, outputs, out / "work", log)
    if points:
        (out / "points.json").write_text(json.dumps(points))


def leave(code: int) -> None:
    """End as the components do: gloo's threads may wait for peers that are gone."""
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--parallel", default="ddp")
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--micro-batch-size", type=int)
    parser.add_argument("--stop-at", type=int)
    parser.add_argument("--slow", type=float, help="seconds that each step takes longer")
    given = parser.parse_args()
    try:
        loop(given) if given.float64 else recipe(given)
    except BigTransferError as error:
        print(error, file=sys.stderr, flush=True)
        leave(error.exit_code)
    leave(0)
