"""A training step (forward, backward, SGD) of ours against timm's and the paper's formula.

python benchmarks/peers.py                                  # timm, once
python benchmarks/train_step.py --device cpu
python benchmarks/train_step.py --device cpu --micro-batches 4 --size 64
python benchmarks/train_step.py --device cuda --size 224 --batch 256 --compile
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import peers  # first: it finds the project
import rounds
import torch
import torch.nn.functional as F
from rounds import Step
from torch import nn

from bigtransfer.model import create_model
from bigtransfer.model.resnet import RECOMPUTE, Recompute
from bigtransfer.train.captured import CapturedStep
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.devices import Device
from bigtransfer.train.loop import StepValues
from bigtransfer.train.loss import loss_named
from bigtransfer.train.optimizer import make_optimizer
from bigtransfer.train.steps import choose_step
from bigtransfer.train.stream import DeviceBatch

CLASSES = 1000
Built = tuple[Step, nn.Module]


def main() -> None:
    """Measure and print."""
    parser = rounds.common_arguments("Training step: ours against peers.")
    parser.add_argument(
        "--micro-batches",
        type=int,
        default=1,
        metavar="N",
        help="gradients of N batches are added up per step",
    )
    arguments = parser.parse_args()
    rounds.settle(arguments)
    cuda, bench = arguments.device == "cuda", rounds.Bench(arguments)
    build = partial(_build, arguments)
    make_timm = partial(peers.timm_model, arguments.model, CLASSES)
    make_paper = partial(peers.PaperNet, arguments.model, CLASSES)

    print(rounds.describe_machine(arguments) + f", {arguments.micro_batches} micro-batches")
    for layout, last in (("NCHW", False), ("NHWC", True)):
        bench.add(f"timm {layout}", partial(build, make_timm, last=last))
        bench.add(f"timm+fused SGD {layout}", partial(build, make_timm, last=last, fused=True))
        bench.add(f"paper's formula {layout}", partial(build, make_paper, last=last))
        if arguments.compile:
            bench.add(
                f"compiled timm {layout}", partial(build, make_timm, last=last, compiled=True)
            )
    for what in RECOMPUTE:
        name = "ours" if what == "none" else f"ours, recompute {what}"
        bench.add(name, partial(_build_ours, arguments, what))
        if cuda:
            bench.add(f"eager {name}", partial(_build_ours, arguments, what, graph=False))
    if arguments.compile:
        bench.add("compiled ours", partial(_build_ours, arguments, compiled=True))
    bench.run()
    with torch.device("meta"):
        flops = 3 * rounds.forward_flops(create_model(arguments.model, CLASSES), arguments.size)
    images = arguments.batch * arguments.micro_batches
    references = [bench.best(n) for n in ("timm ", "timm+", "compiled timm", "paper")]
    bench.print_table(images, flops * images, [name for name in references if name])


def _build_ours(
    arguments: argparse.Namespace,
    recompute: Recompute = "none",
    *,
    compiled: bool = False,
    graph: bool = True,
) -> Built:
    """Build the step that the project's loop would take, in its settings."""
    device, micro = torch.device(arguments.device), arguments.micro_batches
    compute = ComputeSettings(
        Device(device),
        precision=arguments.dtype,
        micro_batch_size=arguments.batch if micro > 1 else None,
        compiled=compiled,
        cuda_graph="auto" if graph and not compiled else False,
    )
    model = create_model(arguments.model, CLASSES).recompute(recompute).to(device)
    optimizer = make_optimizer(model, momentum=0.9, weight_decay=0.0)
    called: nn.Module = torch.compile(model) if compiled else model  # type: ignore[assignment]
    images = arguments.batch * micro
    step = choose_step(
        called,
        optimizer,
        loss_named("softmax"),
        images,
        compute,
        say=lambda line: print(f"  {line}", flush=True),
    )
    side = arguments.size
    batch = DeviceBatch(
        torch.randint(256, (images, side, side, 3), dtype=torch.uint8, device=device),
        torch.randint(CLASSES, (images,), device=device),
    )

    def one() -> None:
        step(batch, StepValues(1e-3), lambda loss: None)  # nobody reads the loss on a GPU

    one.captured = isinstance(step, CapturedStep)  # type: ignore[attr-defined]
    return one, model


def _build(
    arguments: argparse.Namespace,
    make: Callable[[], nn.Module],
    *,
    last: bool = False,
    fused: bool = False,
    compiled: bool = False,
) -> Built:
    device, micro = arguments.device, arguments.micro_batches
    model = make().to(device).train()
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
    y = torch.randint(CLASSES, (arguments.batch,), device=device)
    if last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, fused=fused or None)
    called = torch.compile(model) if compiled else model
    autocast = arguments.dtype == "bfloat16"

    def step() -> None:
        for _ in range(micro):
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                logits = called(x)
            (F.cross_entropy(logits.float(), y) / micro).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, model


if __name__ == "__main__":
    main()
