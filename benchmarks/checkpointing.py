"""What checkpoints in the background cost a training: with and without, in turn, in one process.

    python benchmarks/checkpointing.py

A network of 100 million parameters or more trains on one thread of a CPU; the saver has the other
core. Rounds without checkpoints alternate with rounds in which one is written; the loop's waiting
is counted by the saver itself, the total cost is the difference between neighbouring rounds. Both
are given for a checkpoint every `--every` seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from bigtransfer.model import create_model
from bigtransfer.train.checkpoints import Checkpoints
from bigtransfer.train.optimizer import make_optimizer, updates_in_backward
from bigtransfer.train.saver import Saver
from bigtransfer.train.state import live_state, state_bytes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="R50x2", help="architecture (default: R50x2)")
    parser.add_argument("--classes", type=int, default=5000, help="of the head (default: 5000)")
    parser.add_argument("--size", type=int, default=64, help="pixels (default: 64)")
    parser.add_argument("--batch", type=int, default=4, help="images per step (default: 4)")
    parser.add_argument("--every", type=float, default=30.0, help="seconds (default: 30)")
    parser.add_argument("--rounds", type=int, default=9, help="of each kind (default: 9)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = create_model(arguments.model, arguments.classes).train()
    optimizer = make_optimizer(model, momentum=0.9, weight_decay=1e-4)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    y = torch.randint(arguments.classes, (arguments.batch,))
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "metrics.jsonl"
        journal.write_text("")
        saver = Saver(Checkpoints(Path(folder), None, print))

        def step() -> None:
            loss = F.cross_entropy(model(x), y)
            saver.before_update()
            loss.backward()  # type: ignore[no-untyped-call]

        with updates_in_backward(optimizer):
            for _ in range(2):
                step()
            saver.begin(1, live_state(model, optimizer), {}, journal, None)  # makes the buffers
            saver.finish()
            steps = max(4, _steps_that_cover_a_save(saver, model, optimizer, journal, step))
            plain, with_one, waited = [], [], []
            for number in range(arguments.rounds):
                plain.append(_seconds(step, steps))
                before = saver.blocked_seconds
                began = time.monotonic()
                saver.begin(10 + number, live_state(model, optimizer), {}, journal, None)
                for _ in range(steps):
                    step()
                with_one.append(time.monotonic() - began)
                waited.append(saver.blocked_seconds - before)
                saver.finish()
    added = [b - a for a, b in zip(plain, with_one, strict=True)]
    print(
        f"{arguments.model}, {sum(p.numel() for p in model.parameters()):,} parameters, checkpoint "
        f"of {state_bytes(model) / 1e6:,.0f} MB; {arguments.rounds} rounds of {steps} steps"
    )
    print(f"{'':<28}{'median':>10}   range")
    _line("seconds of a round without", plain, "s")
    _line("the same with a checkpoint", with_one, "s")
    _line("the loop waited", [1000 * w for w in waited], "ms")
    share = [100 * w / arguments.every for w in waited]
    _line(f"blocked, every {arguments.every:g} s", share, "%")
    _line(
        f"total cost, every {arguments.every:g} s", [100 * a / arguments.every for a in added], "%"
    )


def _steps_that_cover_a_save(saver, model, optimizer, journal, step) -> int:  # type: ignore[no-untyped-def]
    saver.begin(2, live_state(model, optimizer), {}, journal, None)
    steps = 0
    while not saver.is_due(0):
        step()
        steps += 1
    saver.finish()
    return steps + 1


def _seconds(step, steps: int) -> float:  # type: ignore[no-untyped-def]
    began = time.monotonic()
    for _ in range(steps):
        step()
    return time.monotonic() - began


def _line(what: str, values: list[float], unit: str) -> None:
    print(
        f"{what:<28}{statistics.median(values):>10.2f} {unit}   "
        f"[{min(values):.2f}..{max(values):.2f}]"
    )


if __name__ == "__main__":
    main()
