"""What it gains that a process keeps the memory which a training step frees (decision 0022).

python benchmarks/kept_memory.py                       # the default run's network
python benchmarks/kept_memory.py --model R50x1 --root imagenet --size 128 --batch 8

glibc's thresholds hold for a whole process; so each way has its own process. Both live through all
rounds and step in turn, while the other waits.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import peers  # noqa: F401  # finds the project
import torch
import torch.nn.functional as F

from bigtransfer.model import create_model
from bigtransfer.model.processor import use_cpu
from bigtransfer.train.optimizer import make_optimizer, updates_in_backward

WAYS = ("returned", "kept")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="R14x0.25", help="architecture (default: R14x0.25)")
    parser.add_argument("--root", default="small", help="small or imagenet (default: small)")
    parser.add_argument("--size", type=int, default=24, help="pixels (default: 24)")
    parser.add_argument("--batch", type=int, default=64, help="images per step (default: 64)")
    parser.add_argument("--steps", type=int, default=5, help="per round (default: 5)")
    parser.add_argument("--rounds", type=int, default=15, help="of each way (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        _answer(arguments)
        return
    children = {way: _child(way) for way in WAYS}
    for child in children.values():
        _round(child)  # warms up
    rounds = [
        {way: _round(child) for way, child in children.items()} for _ in range(arguments.rounds)
    ]
    for child in children.values():
        child.communicate()
    print(
        f"{arguments.model}, {arguments.size} px, batch {arguments.batch}, float32, "
        f"{arguments.threads} thread(s), {arguments.rounds} rounds of {arguments.steps} steps"
    )
    for way in WAYS:
        seconds, faults, peak = (statistics.median(r[way][i] for r in rounds) for i in range(3))
        images = arguments.batch * arguments.steps / seconds
        print(
            f"{way:<10}{images:>8,.1f} images/s{faults:>12,.0f} page faults{peak:>8,.0f} MiB peak"
        )
    ratios = sorted(r["returned"][0] / r["kept"][0] for r in rounds)
    print(f"kept: x{statistics.median(ratios):.2f} [{ratios[0]:.2f}..{ratios[-1]:.2f}]")


def _child(way: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *sys.argv, "--way", way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _round(child: subprocess.Popen[str]) -> list[float]:
    assert child.stdin is not None
    assert child.stdout is not None
    print("go", file=child.stdin, flush=True)
    return [float(number) for number in child.stdout.readline().split()]


def _answer(arguments: argparse.Namespace) -> None:
    """Do a round for every line that comes; write processor seconds, page faults, peak MiB."""
    if arguments.way == "kept":
        use_cpu(arguments.threads)
    else:
        torch.set_num_threads(arguments.threads)
    model = create_model(arguments.model, 10, arguments.root).train()
    optimizer = make_optimizer(model, momentum=0.9, weight_decay=1e-4)
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    y = torch.randint(10, (arguments.batch,))
    for _ in sys.stdin:
        usage, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
        for _ in range(arguments.steps):
            with updates_in_backward(optimizer):
                F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        seconds, after = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF)
        print(seconds, after.ru_minflt - usage.ru_minflt, after.ru_maxrss / 1024, flush=True)


if __name__ == "__main__":
    main()
