"""What a run is computed on, and how: all of it leaves the result as it is, but for rounding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from bigtransfer.model.resnet import Recompute
from bigtransfer.train.devices import Device, choose_device
from bigtransfer.train.group import Group

CudaGraph = Literal["auto", True, False]


@dataclass
class ComputeSettings:
    """What this process computes with.

    Attributes:
        device: Of this process.
        group: The processes of the run.
        precision: `float32` or `bfloat16` (autocast, float32 master weights).
        micro_batch_size: Images per forward pass; None: all of this process's share. Halved when
            memory runs out.
        recompute: Activations that are computed again in backward, `none`, `norms` or `units`.
        compiled: Whether the network is compiled.
        cuda_graph: Whether a step is recorded as CUDA graphs; `auto`: where it can be.
        together: Images over which BatchNorm takes its statistics: a forward pass holds a multiple;
            None: all of a pass, which is never made smaller.
    """

    device: Device = field(default_factory=Device)
    group: Group = field(default_factory=Group)
    precision: str = "float32"
    micro_batch_size: int | None = None
    recompute: Recompute = "none"
    compiled: bool = False
    cuda_graph: CudaGraph = "auto"
    together: int | None = 1

    @property
    def input_dtype(self) -> torch.dtype:
        """Return the dtype in which images enter: autocast would make the same of float32."""
        narrow = self.precision == "bfloat16" and self.device.is_cuda
        return torch.bfloat16 if narrow else torch.float32


def logits_of(model: nn.Module, x: Tensor, compute: ComputeSettings) -> Tensor:
    """Return a network's logits in float32, or float64 where its weights are.

    Args:
        model: The network; its first parameter says the dtype that images are given in.
        x: Images (B, C, H, W) on the device, float32 or `compute.input_dtype`.
        compute: Gives the precision of the forward pass.
    """
    kind = next(model.parameters()).dtype
    if x.dtype == torch.float32:
        x = x.to(kind)
    with compute.device.autocast(compute.precision):
        logits: Tensor = model(x)
    return logits if logits.dtype == torch.float64 else logits.float()


@dataclass(frozen=True)
class Machine:
    """How cells are computed; travels to worker processes."""

    device: str
    """`auto`, `cpu` or `cuda`."""
    threads: int
    """Of the CPU."""
    precision: str
    micro_batch_size: int | None
    """None: as many images per forward pass as fit."""
    recompute: Recompute
    compiled: bool
    cuda_graph: CudaGraph

    def settings(self, number: int) -> ComputeSettings:
        """Return what a worker computes on: with several GPUs, each its own."""
        gpus = torch.cuda.device_count()
        return ComputeSettings(
            choose_device(self.device, number % gpus if gpus else 0),
            precision=self.precision,
            micro_batch_size=self.micro_batch_size,
            recompute=self.recompute,
            compiled=self.compiled,
            cuda_graph=self.cuda_graph,
        )
