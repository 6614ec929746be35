"""A fine-tuning step against a pretraining step, both by the project's own loop.

python benchmarks/transfer_step.py --device cpu
python benchmarks/transfer_step.py --device cuda --size 224 --batch 128 --compile

The network, the batch and the micro-batches are the same. Pretraining has weight decay and may
have a larger head (`--upstream-classes 21843`); fine-tuning from 20,000 images on has MixUp, which
takes each image twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from itertools import count

import peers  # noqa: F401  # first: it finds the project
import rounds
import torch
from rounds import Step
from torch import nn

from bigtransfer.model import create_model
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.devices import Device
from bigtransfer.train.loop import StepValues
from bigtransfer.train.loss import loss_named
from bigtransfer.train.mixup import mixup_lambda
from bigtransfer.train.parallel import parallelize
from bigtransfer.train.steps import choose_step
from bigtransfer.train.stream import DeviceBatch

_RATE = 1e-3
_MIXUP_ALPHA = 0.1


def main() -> None:
    """Measure and print."""
    parser = rounds.common_arguments("A fine-tuning step against a pretraining step.")
    parser.add_argument(
        "--micro-batches",
        type=int,
        default=1,
        metavar="N",
        help="forward passes per step; --batch images each",
    )
    parser.add_argument("--classes", type=int, default=100, help="of both heads")
    parser.add_argument(
        "--upstream-classes", type=int, help="of the pretraining head (default: as --classes)"
    )
    arguments = parser.parse_args()
    rounds.settle(arguments)
    bench = rounds.Bench(arguments)
    print(rounds.describe_machine(arguments) + f", {arguments.micro_batches} micro-batches")
    upstream = arguments.upstream_classes or arguments.classes
    for compiled in (False, True) if arguments.compile else (False,):
        prefix = "compiled " if compiled else ""
        build = partial(_build, arguments, compiled=compiled)
        bench.add(f"{prefix}pretrain", partial(build, upstream, None, 1e-4))
        bench.add(f"{prefix}finetune", partial(build, arguments.classes, None, 0.0))
        bench.add(f"{prefix}finetune, MixUp", partial(build, arguments.classes, _MIXUP_ALPHA, 0.0))
    bench.run()
    with torch.device("meta"):
        flops = 3 * rounds.forward_flops(
            create_model(arguments.model, arguments.classes), arguments.size
        )
    images = arguments.batch * arguments.micro_batches
    bench.print_table(images, flops * images, ["pretrain", "compiled pretrain"])


def _build(
    arguments: argparse.Namespace,
    classes: int,
    mixup_alpha: float | None,
    weight_decay: float,
    *,
    compiled: bool,
) -> tuple[Step, nn.Module]:
    compute = ComputeSettings(
        Device(torch.device(arguments.device)),
        precision=arguments.dtype,
        micro_batch_size=arguments.batch,
        compiled=compiled,
    )
    model = create_model(arguments.model, classes).to(compute.device.torch)
    called, optimizer = parallelize(
        model,
        None,
        compute.group,
        parallel="ddp",
        compiled=compiled,
        momentum=0.9,
        weight_decay=weight_decay,
    )
    images, side = arguments.batch * arguments.micro_batches, arguments.size
    batch = DeviceBatch(
        torch.randint(256, (images, side, side, 3), dtype=torch.uint8).to(arguments.device),
        torch.randint(classes, (images,)).to(arguments.device),
    )
    step = choose_step(
        called,
        optimizer,
        loss_named("softmax"),
        images,
        compute,
        mixes=bool(mixup_alpha),
    )
    numbers: Iterator[int] = count()

    def one() -> None:
        lam = mixup_lambda(mixup_alpha, 0, next(numbers))
        step(batch, StepValues(_RATE, lam), lambda loss: None)

    return one, model


if __name__ == "__main__":
    main()
