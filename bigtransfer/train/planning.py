"""What an upstream training would do, before it starts: steps, FLOPs, memory.

Steps and FLOPs are exact. Memory is counted, not measured: weights, momentum, gradients and what
autograd keeps of an image; allocators and libraries come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bigtransfer.config import PretrainParams
from bigtransfer.model.costs import kept_per_image
from bigtransfer.model.macs import FLOPS_PER_MAC, forward_macs
from bigtransfer.model.resnet import create_model
from bigtransfer.train.schedule import Schedule, planned_schedule

_USABLE = 0.9
"""Share of a device's memory that a run may fill."""


@dataclass(frozen=True)
class Plan:
    """What a training takes. Bytes, unless a name says otherwise."""

    schedule: Schedule
    images: int
    parameters: int
    flops: float
    state_per_device: int
    """Weights, momentum and gradients."""
    fixed_per_device: int
    """Standardised kernels."""
    kept_per_image: int
    share: int
    """Images of a step that a device takes."""
    micro_batch_size: int | None
    """Images per forward pass; None: not even one fits."""
    checkpoint: int

    @property
    def accumulation_steps(self) -> int:
        """Forward passes of a device per update."""
        return -(-self.share // (self.micro_batch_size or self.share))

    @property
    def memory_per_device(self) -> int:
        """Bytes in use at the planned micro-batch."""
        kept = self.kept_per_image * (self.micro_batch_size or 1)
        return self.state_per_device + self.fixed_per_device + kept


def plan(
    params: PretrainParams, examples: int, classes: int, devices: int, memory: int | None
) -> Plan:
    """Return what a training takes.

    Args:
        params: The recipe.
        examples: Training images.
        classes: Outputs of the head.
        devices: Processes, one device each.
        memory: Of a device, bytes; None: unlimited.
    """
    name, root, norm = params.architecture, params.root, params.norm
    schedule = planned_schedule(
        examples,
        epochs=params.epochs,
        batch_size=params.batch_size,
        base_lr=params.base_lr,
        warmup_steps=params.warmup_steps,
        decay_epochs=params.decay_epochs,
    )
    with torch.device("meta"):
        model = create_model(name, classes, root, norm=norm)
    parameters = sum(p.numel() for p in model.parameters())
    per_image, fixed = kept_per_image(name, classes, params.crop, root, norm, params.recompute)
    if params.precision == "bfloat16":
        per_image, fixed = per_image // 2, fixed // 2
    images = schedule.total_steps * params.batch_size
    state = 12 * parameters // (devices if params.parallel == "fsdp" else 1)
    share = -(-params.batch_size // devices)
    micro: int | None = min(params.micro_batch_size or share, share)
    if memory is not None and micro is not None:
        room = int(_USABLE * memory) - state - fixed
        while micro and micro * per_image > room:
            micro = micro // 2 or None
    macs = forward_macs(name, classes, params.crop, root)
    return Plan(
        schedule,
        images,
        parameters,
        float(FLOPS_PER_MAC * macs * images),
        state,
        fixed,
        per_image,
        share,
        micro,
        8 * parameters,
    )
