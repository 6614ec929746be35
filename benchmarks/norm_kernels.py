"""The norm's kernels at the shapes of a ResNet: microseconds, and bytes a second beside a copy's.

python benchmarks/norm_kernels.py                              # R50x1, 224 px, batch 256
python benchmarks/norm_kernels.py --set --set _ELEMENTS=4096 --set _LANES=64

A pass counts the bytes that it cannot do without: each tensor read or written once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import peers  # noqa: F401  # first: it finds the project
import torch
from torch import Tensor

from bigtransfer.model import triton_group_norm as kernels

SHAPES = ((64, 56), (256, 56), (128, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7),
          (2048, 7))  # fmt: skip
"""Channels and side of what ResNet-50's norms read."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument(
        "--set", nargs="*", action="append", metavar="NAME=NUMBER",
        help="numbers of triton_group_norm.py to measure with; as often as wanted",
    )  # fmt: skip
    given = parser.parse_args()
    torch.manual_seed(0)
    usual = {name: value for name, value in vars(kernels).items() if isinstance(value, int)}
    for words in given.set or [[]]:
        numbers = dict(word.split("=") for word in words)
        if unknown := sorted(numbers.keys() - usual.keys()):
            parser.error(f"--set {unknown[0]}: triton_group_norm.py has no such number")
        vars(kernels).update(usual | {name: int(number) for name, number in numbers.items()})
        print(f"\n{' '.join(words) or 'as it is'}")
        measure(given.batch)


def measure(batch: int) -> None:
    """Print a line per shape, and sums."""
    totals: dict[str, float] = {}
    for channels, side in SHAPES:
        line = f"{channels:>5} x {side}x{side}"
        for name, (work, passes) in works(batch, channels, side).items():
            seconds = timed(work)
            rate = batch * channels * side * side * 2 * passes / seconds
            totals[name] = totals.get(name, 0.0) + seconds
            line += f"   {name} {seconds * 1e6:5.0f} us {rate / 1e12:5.2f} TB/s"
        print(line, flush=True)
    print("   ".join(f"all {name} {seconds * 1e3:.2f} ms" for name, seconds in totals.items()))


def works(batch: int, channels: int, side: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Return what is timed, and how many times it has to go through the tensor."""

    def draw() -> Tensor:
        shape = (batch, channels, side, side)
        x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        return x.contiguous(memory_format=torch.channels_last)

    x, other, dy = draw(), draw(), draw()
    gain, offset = torch.randn(2, channels, device="cuda")
    _, mean, rstd = kernels.forward(x, gain, offset, 32, 1e-5)
    return {
        "copy": (lambda: other.copy_(x), 2),
        "forward": (lambda: kernels.forward(x, gain, offset, 32, 1e-5), 2),
        "add": (lambda: kernels.add_forward(x, other, gain, offset, 32, 1e-5), 4),
        "backward": (lambda: kernels.backward(dy, x, gain, offset, mean, rstd, 32, other), 4),
    }


def timed(work: Callable[[], object], times: int = 20, rounds: int = 3) -> float:
    """Return the seconds of one call, replayed from a recording: launching counts nothing."""
    for _ in range(3):
        work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            work()
    best = float("inf")
    for _ in range(rounds):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        torch.cuda.synchronize()
        best = min(best, began.elapsed_time(ended) / times / 1e3)
    return best


if __name__ == "__main__":
    main()
