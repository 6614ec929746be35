"""A forward pass of ours, folded, against timm's and the paper's formula.

python benchmarks/peers.py                                  # timm, once
python benchmarks/inference.py --device cpu
python benchmarks/inference.py --device cpu --size 64 --batch 1
python benchmarks/inference.py --device cuda --size 224 --batch 256 --compile
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import peers  # first: it finds the project
import rounds
import torch
from rounds import Step
from torch import nn

from bigtransfer.model import create_model

CLASSES = 1000


def main() -> None:
    """Measure and print."""
    arguments = rounds.common_arguments("Inference: ours against peers.").parse_args()
    rounds.settle(arguments)
    bench = rounds.Bench(arguments)
    build = partial(_build, arguments)
    make_timm = partial(peers.timm_model, arguments.model, CLASSES)
    make_paper = partial(peers.PaperNet, arguments.model, CLASSES)

    def make_ours() -> nn.Module:
        return create_model(arguments.model, CLASSES)

    def make_folded() -> nn.Module:
        return create_model(arguments.model, CLASSES).fold()

    print(rounds.describe_machine(arguments))
    for layout, last in (("NCHW", False), ("NHWC", True)):
        bench.add(f"timm {layout}", partial(build, make_timm, last=last))
        bench.add(f"paper's formula {layout}", partial(build, make_paper, last=last))
        if arguments.compile:
            bench.add(
                f"compiled timm {layout}", partial(build, make_timm, last=last, compiled=True)
            )
    bench.add("ours, not folded", partial(build, make_ours))
    bench.add("ours", partial(build, make_folded))
    bench.add("ours, bfloat16 weights", partial(build, make_folded, cast=True))
    if arguments.compile:
        bench.add("compiled ours", partial(build, make_folded, compiled=True))
        bench.add(
            "compiled ours, bfloat16 weights",
            partial(build, make_folded, compiled=True, cast=True),
        )
    bench.run()
    with torch.device("meta"):
        flops = rounds.forward_flops(create_model(arguments.model, CLASSES), arguments.size)
    references = [bench.best("timm "), bench.best("compiled timm"), bench.best("paper")]
    bench.print_table(
        arguments.batch, flops * arguments.batch, [name for name in references if name]
    )


def _build(
    arguments: argparse.Namespace,
    make: Callable[[], nn.Module],
    *,
    last: bool = False,
    compiled: bool = False,
    cast: bool = False,
) -> tuple[Step, nn.Module]:
    model = make().to(arguments.device).eval()
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=arguments.device)
    if last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    if cast:
        model, x = model.bfloat16(), x.bfloat16()
    called = torch.compile(model) if compiled else model
    autocast = arguments.dtype == "bfloat16" and not cast

    def step() -> None:
        with (
            torch.inference_mode(),
            torch.autocast(arguments.device, torch.bfloat16, enabled=autocast),
        ):
            called(x)

    return step, model


if __name__ == "__main__":
    main()
