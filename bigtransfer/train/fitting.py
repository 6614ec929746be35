"""What fits into this machine's memory, and how long a training takes on it."""

from __future__ import annotations

import time

import torch

from bigtransfer.model.costs import kept_per_image
from bigtransfer.model.resnet import Norm, Recompute, ResNetV2, Root
from bigtransfer.train.devices import Device
from bigtransfer.train.loss import Loss, loss_named
from bigtransfer.train.optimizer import make_optimizer

_CPU_ACTIVATION_BYTES = 2 << 30
"""A fixed budget: with what is free just now, a run would round otherwise each time."""


def images_that_fit(
    name: str, num_classes: int, size: int, root: Root, norm: Norm, recompute: Recompute
) -> int:
    """Return how many images a CPU takes per forward pass of a training step.

    There, running out of memory is no exception that one could answer by taking less: the kernel
    ends the process.

    Args:
        name: Of the architecture.
        num_classes: Outputs of the head.
        size: Of the images, pixels.
        root: `imagenet` or `small`.
        norm: Of the network.
        recompute: What is made again in backward.
    """
    per_image, fixed = kept_per_image(name, num_classes, size, root, norm, recompute)
    return max(1, (_CPU_ACTIVATION_BYTES - fixed) // per_image)


def images_per_second(
    model: ResNetV2,
    size: int,
    device: Device,
    micro_batch_size: int,
    seconds: float,
    *,
    precision: str = "float32",
    loss: Loss | None = None,
) -> float:
    """Return how fast this machine's device trains, from some steps on random images.

    Args:
        model: A network of the kind; it is trained on nonsense.
        size: Of the images, pixels.
        device: Of this machine.
        micro_batch_size: Images per forward pass.
        seconds: To measure for, after a warm-up of one step.
        precision: `float32` or `bfloat16`.
        loss: None: softmax cross-entropy.
    """
    model.to(device.torch).train()
    optimizer = make_optimizer(model, momentum=0.9, weight_decay=1e-4)
    shape = (micro_batch_size, 3, size, size)
    images = torch.rand(shape, device=device.torch).sub_(0.5).mul_(2)
    labels = torch.arange(micro_batch_size, device=device.torch) % model.head.bias.numel()
    measured = loss or loss_named("softmax")

    def step() -> None:
        with device.autocast(precision):
            logits = model(images)
        measured(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        device.synchronize()

    step()
    began, steps = time.monotonic(), 0
    while steps == 0 or time.monotonic() - began < seconds:
        step()
        steps += 1
    return steps * micro_batch_size / (time.monotonic() - began)
