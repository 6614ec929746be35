"""Run variants in turn, A B C A B C, in one process, and print their ratios.

Machines are noisy and drift; neighbours in time see the same machine. So the ratio is taken within
each round, and its median over the rounds is given with its range. On a CPU it is the processor
time of one thread that is measured, on a GPU the time between two synchronisations.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bigtransfer.train.devices import tune_gpu

Step = Callable[[], object]


@dataclass
class Row:
    """One variant and what was measured of it."""

    name: str
    step: Step
    mebibytes: float | None
    ready: float
    """Seconds until its second step was done: building, tuning, compiling, recording."""
    seconds: list[float] = field(default_factory=list)
    kernels: list[tuple[str, float, float]] = field(default_factory=list)
    """Name, launches per step, seconds per step; where --profile asks for it."""

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)


def common_arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser of the flags that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run")
    parser.add_argument("--model", default="R50x1", help="architecture")
    parser.add_argument("--size", type=int, default=128, help="image height and width, pixels")
    parser.add_argument("--batch", type=int, default=4, help="images per step or micro-batch")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="bfloat16: autocast, float32 masters (default: float32 on a CPU, bfloat16 on a GPU)",
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds of A B C")
    parser.add_argument(
        "--steps", type=int, help="steps per round (default: 1 on a CPU, 5 on a GPU)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well (minutes)")
    parser.add_argument(
        "--only", nargs="+", metavar="REGEX", help="rows whose names hold one of these"
    )
    parser.add_argument(
        "--cudnn-tries", type=int, metavar="N", help="algorithms per shape (default: as the loop)"
    )
    parser.add_argument(
        "--profile", action="store_true", help="say where the time goes as well (on a GPU)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--peak-tflops",
        type=float,
        default=790.0,
        help="what 100 %% MFU is on this GPU: its measured bfloat16 product",
    )
    return parser


def settle(arguments: argparse.Namespace) -> None:
    """Fill in what depends on the device, and set torch up."""
    cuda = arguments.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device here")
    arguments.dtype = arguments.dtype or ("bfloat16" if cuda else "float32")
    arguments.steps = arguments.steps or (5 if cuda else 1)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tune_gpu()
    if arguments.cudnn_tries is not None:
        torch.backends.cudnn.benchmark = arguments.cudnn_tries > 0
        torch.backends.cudnn.benchmark_limit = arguments.cudnn_tries
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


class Bench:
    """Variants of one thing, measured in turn."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._cuda = arguments.device == "cuda"
        self.rows: list[Row] = []

    def add(self, name: str, build: Callable[[], tuple[Step, nn.Module]]) -> None:
        """Build a variant and run it twice; one that cannot be built leaves a line."""
        only = self._arguments.only
        if only and not any(re.search(text, name) for text in only):
            return
        before = torch.cuda.memory_allocated() if self._cuda else 0
        began = time.perf_counter()
        try:
            if self._cuda:
                torch.cuda.reset_peak_memory_stats()
            step, model = build()
            step()
            step()
            memory = self._memory(step, model, before)
        except (ImportError, RuntimeError) as error:  # no timm; no memory; no compiler
            if self._cuda:
                torch.cuda.empty_cache()
            lines = str(error).strip().splitlines() or [type(error).__name__]
            print(f"  left out: {name}: {lines[0][:200]}", flush=True)
            return
        ready = time.perf_counter() - began
        print(f"  ready: {name} ({ready:.0f} s)", flush=True)
        self.rows.append(Row(name, step, memory, ready))

    def run(self) -> None:
        """Measure every variant once per round."""
        for _ in range(self._arguments.rounds):
            for row in self.rows:
                row.seconds.append(self._time(row.step))
        if self._arguments.profile and self._cuda:
            for row in self.rows:
                row.kernels = _kernels(row.step)

    def _time(self, step: Step) -> float:
        steps = self._arguments.steps
        if not self._cuda:
            began = time.process_time()
            for _ in range(steps):
                step()
            return (time.process_time() - began) / steps
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps

    def _memory(self, step: Step, model: nn.Module, before: int) -> float | None:
        """Mebibytes: on a GPU the peak of this variant alone, on a CPU the activations it keeps."""
        if not self._cuda:
            return kept_for_backward(step, model, self._arguments.batch) / 2**20
        if getattr(step, "captured", False):
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def print_table(self, images: int, flops: float, references: list[str]) -> None:
        """Print one line per variant: images/s, memory, MFU, and its lead over each reference."""
        by_name = {row.name: row for row in self.rows}
        known = [name for name in references if name in by_name]
        memory = "peak MiB" if self._cuda else "kept MiB"
        head = f"{'':<34}{'images/s':>10}{memory:>10}" + ("   MFU" if self._cuda else "")
        print("\n" + head + "".join(f"   {'against ' + name:<25}" for name in known))
        for row in self.rows:
            line = f"{row.name:<34}{images / row.median:>10,.1f}"
            line += f"{row.mebibytes:>10,.0f}" if row.mebibytes is not None else f"{'':>10}"
            if self._cuda:
                line += f"{flops / row.median / self._arguments.peak_tflops / 1e12:>6.0%}"
            for name in known:
                line += f"   {_lead(by_name[name], row):<25}"
            print(line.rstrip())
        for row in self.rows:
            _print_kernels(row)
        if self._arguments.json:
            figures = {
                row.name: {
                    "images_per_second": images / row.median,
                    "seconds": row.seconds,
                    "mebibytes": row.mebibytes,
                    "ready_seconds": row.ready,
                    "flops_per_second": flops / row.median,
                    "kernels": row.kernels,
                }
                for row in self.rows
            }
            self._arguments.json.write_text(json.dumps(figures, indent=1))

    def best(self, *parts: str) -> str | None:
        """Return the fastest variant whose name begins with one of these."""
        rows = [row for row in self.rows if row.name.startswith(parts)]
        return min(rows, key=lambda row: row.median).name if rows else None


def _kernels(step: Step, steps: int = 3) -> list[tuple[str, float, float]]:
    """Return what a step launches on the GPU, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    found = [
        (event.key, event.count / steps, event.self_device_time_total / steps / 1e6)
        for event in profiler.key_averages()
        if event.self_device_time_total
    ]
    return sorted(found, key=lambda kernel: -kernel[2])


def _print_kernels(row: Row, most: int = 30) -> None:
    if not row.kernels:
        return
    whole = sum(seconds for _, _, seconds in row.kernels)
    print(f"\n{row.name}: {whole * 1e3:.1f} ms of kernels a step")
    for name, launches, seconds in row.kernels[:most]:
        print(f"{seconds * 1e3:8.2f} ms {seconds / whole:6.1%} {launches:6.0f} x  {name[:110]}")


def _lead(reference: Row, row: Row) -> str:
    ratios = sorted(a / b for a, b in zip(reference.seconds, row.seconds, strict=True))
    text = f"x{statistics.median(ratios):.2f} [{ratios[0]:.2f}..{ratios[-1]:.2f}]"
    if reference.mebibytes and row.mebibytes:
        text += f" mem x{row.mebibytes / reference.mebibytes:.2f}"
    return text


def kept_for_backward(step: Step, model: nn.Module, batch: int) -> int:
    """Return the most bytes of activations that autograd keeps at once in a step.

    Activations are tensors with a row per image. What depends on the weights alone (the
    standardised kernels) is left out: it does not grow with the batch.
    """
    like_weights = {p.shape for p in model.parameters()}
    alive: dict[int, list[int]] = {}
    now = most = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            self.tensor = tensor
            self.counts = tensor.shape[:1] == (batch,) and tensor.shape not in like_weights
            if not self.counts:
                return
            storage = tensor.untyped_storage()
            self.place = storage.data_ptr()
            size_and_count = alive.setdefault(self.place, [storage.nbytes(), 0])
            if size_and_count[1] == 0:
                now += size_and_count[0]
                most = max(most, now)
            size_and_count[1] += 1

        def __del__(self) -> None:
            nonlocal now
            if not self.counts:
                return
            size_and_count = alive[self.place]
            size_and_count[1] -= 1
            if size_and_count[1] == 0:
                now -= size_and_count[0]
                del alive[self.place]

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        step()
    return most


def forward_flops(model: nn.Module, size: int) -> float:
    """Return the floating-point operations of one image, two per multiply-add."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return float(counter.get_total_flops())


def describe_machine(arguments: argparse.Namespace) -> str:
    """Say in one line what is compared, and on what."""
    if arguments.device == "cuda":
        where = torch.cuda.get_device_name()
    else:
        where = f"CPU, {arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
    return (
        f"{arguments.model}, {arguments.size} px, batch {arguments.batch}, {arguments.dtype}, "
        f"{where}, torch {torch.__version__}, {arguments.rounds} rounds"
    )
