"""What `bigtransfer plan --nodes` reckons for a step, against processes on this machine.

python benchmarks/scaling.py                       # 2 processes of one thread, gloo

In turn, round by round: the step of each process by itself (both at once, nothing is exchanged), an
all-reduce of gradients alone, and the step with gradients added up. Printed: the step that is
reckoned from the first two, and the third.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
import warnings
from collections.abc import Callable

import peers  # noqa: F401  # first: it finds the project
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from bigtransfer.model import create_model
from bigtransfer.train.optimizer import make_optimizer
from bigtransfer.train.scaling import step_seconds, wire_bytes

CLASSES = 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--processes", type=int, default=2, metavar="N")
    add("--model", default="R26x1", metavar="NAME")
    add("--size", type=int, default=32, metavar="PIXELS")
    add("--batch", type=int, default=16, metavar="N", help="of each process")
    add("--rounds", type=int, default=10, metavar="N")
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_measure, (arguments, port), arguments.processes)


def _measure(rank: int, arguments: argparse.Namespace, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # once for each
    dist.init_process_group("gloo", rank=rank, world_size=arguments.processes)
    alone, _ = _step(arguments, ddp=False)
    together, parameters = _step(arguments, ddp=True)
    gradients = torch.zeros(parameters)
    seconds: dict[str, list[float]] = {"alone": [], "wire": [], "together": []}
    kinds: tuple[tuple[str, Callable[[], object]], ...] = (
        ("alone", alone), ("wire", lambda: dist.all_reduce(gradients)), ("together", together),
    )  # fmt: skip
    for number in range(arguments.rounds + 1):
        for name, action in kinds:
            dist.barrier()
            began = time.perf_counter()
            action()
            if number:  # the first is to warm up
                seconds[name].append(time.perf_counter() - began)
    if rank == 0:
        _print(arguments, parameters, seconds)
    dist.barrier()


def _step(arguments: argparse.Namespace, *, ddp: bool) -> tuple[Callable[[], None], int]:
    model = create_model(arguments.model, CLASSES, "small", seed=0)
    optimizer = make_optimizer(model, momentum=0.9, weight_decay=1e-4, fused=True)
    called = DistributedDataParallel(model, gradient_as_bucket_view=True) if ddp else model
    images = torch.zeros(arguments.batch, 3, arguments.size, arguments.size)
    labels = torch.zeros(arguments.batch, dtype=torch.long)

    def step() -> None:
        F.cross_entropy(called(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step, sum(p.numel() for p in model.parameters())


def _print(arguments: argparse.Namespace, parameters: int, seconds: dict[str, list[float]]) -> None:
    pairs = zip(seconds["alone"], seconds["wire"], seconds["together"], strict=True)
    ratios = sorted(step_seconds(alone, wire) / together for alone, wire, together in pairs)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    n = arguments.processes
    sent = wire_bytes(parameters, n)
    print(
        f"{arguments.model} {arguments.size} px b{arguments.batch}, {n} processes of one thread, "
        f"{parameters:,} parameters, {arguments.rounds} rounds"
    )
    print(f"step by itself      {1e3 * middle['alone']:8.1f} ms")
    print(
        f"all-reduce alone    {1e3 * middle['wire']:8.1f} ms  ({sent / 1e6:,.1f} MB sent, "
        f"{sent / middle['wire'] / 1e9:.2f} GB/s)"
    )
    print(f"step, reckoned      {1e3 * step_seconds(middle['alone'], middle['wire']):8.1f} ms")
    print(f"step, measured      {1e3 * middle['together']:8.1f} ms")
    print(
        f"reckoned / measured x{statistics.median(ratios):.2f} [{ratios[len(ratios) // 4]:.2f}.."
        f"{ratios[-1 - len(ratios) // 4]:.2f}]"
    )


if __name__ == "__main__":
    main()
