"""A training step (forward, backward, SGD) of ours against timm's and the paper's formula.

python benchmarks/peers.py                                  # timm, once
python benchmarks/train_step.py --device cpu
python benchmarks/train_step.py --device cpu --micro-batches 4 --size 64
python benchmarks/train_step.py --device cuda --size 224 --batch 256 --compile
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import peers  # first: it finds the project
import rounds
import torch
import torch.nn.functional as F
from rounds import Step
from torch import Tensor, nn

from bigtransfer.model import create_model
from bigtransfer.model.resnet import RECOMPUTE, Recompute
from bigtransfer.train.cuda_graph import Recording
from bigtransfer.train.optimizer import updates_in_backward

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
    parser.add_argument("--cuda-graph", action="store_true", help="ours as one CUDA graph as well")
    arguments = parser.parse_args()
    rounds.settle(arguments)
    cuda, bench = arguments.device == "cuda", rounds.Bench(arguments)
    build = partial(_build, arguments)
    make_timm = partial(peers.timm_model, arguments.model, CLASSES)
    make_paper = partial(peers.PaperNet, arguments.model, CLASSES)

    def make_ours(what: Recompute = "none") -> nn.Module:
        return create_model(arguments.model, CLASSES).recompute(what)

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
        bench.add(name, partial(build, partial(make_ours, what), fused=True, early=True))
    if arguments.compile:
        bench.add("compiled ours", partial(build, make_ours, fused=True, compiled=True))
    if arguments.cuda_graph and cuda:
        bench.add("ours, CUDA graph", partial(build, make_ours, fused=True, graph=True))
    bench.run()
    with torch.device("meta"):
        flops = 3 * rounds.forward_flops(create_model(arguments.model, CLASSES), arguments.size)
    images = arguments.batch * arguments.micro_batches
    references = [bench.best(n) for n in ("timm ", "timm+", "compiled timm", "paper")]
    bench.print_table(images, flops * images, [name for name in references if name])


def _build(
    arguments: argparse.Namespace,
    make: Callable[[], nn.Module],
    *,
    last: bool = False,
    fused: bool = False,
    compiled: bool = False,
    graph: bool = False,
    early: bool = False,
) -> Built:
    device, micro = arguments.device, arguments.micro_batches
    model = make().to(device).train()
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
    y = torch.randint(CLASSES, (arguments.batch,), device=device)
    if last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    rate = torch.tensor(1e-3, device=device) if graph else 1e-3
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, fused=fused or None)
    called = torch.compile(model) if compiled else model
    autocast = arguments.dtype == "bfloat16"
    # Ours standardises its kernels once for all micro-batches; nobody else can.
    once = model.standardized_once if micro > 1 and hasattr(model, "standardized_once") else None

    def forward_backward_update(x: Tensor, y: Tensor) -> Tensor:
        with once() if once else nullcontext():
            for _ in range(micro):
                with torch.autocast(device, torch.bfloat16, enabled=autocast):
                    logits = called(x)
                loss = F.cross_entropy(logits.float(), y) / micro
                loss.backward()
        optimizer.step()
        return loss

    if graph:
        captured = Recording(forward_backward_update, optimizer, [x, y])

        def replay() -> None:
            captured(x, y)

        replay.captured = True  # type: ignore[attr-defined]
        return replay, model

    def step() -> None:
        forward_backward_update(x, y)
        optimizer.zero_grad(set_to_none=True)

    if early and micro == 1:  # as our loop trains

        def step_in_backward() -> None:
            with updates_in_backward(optimizer):
                with torch.autocast(device, torch.bfloat16, enabled=autocast):
                    logits = called(x)
                F.cross_entropy(logits.float(), y).backward()

        return step_in_backward, model
    return step, model


if __name__ == "__main__":
    main()
