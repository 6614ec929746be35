"""Which of the three kinds of step a run takes: eager, captured as a CUDA graph, or on a TPU."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import SGD

from bigtransfer.errors import ConfigError
from bigtransfer.model.resnet import ResNetV2
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.cuda_graph import CapturedStep
from bigtransfer.train.eager import EagerStep
from bigtransfer.train.loop import TrainStep
from bigtransfer.train.loss import Loss
from bigtransfer.train.tpu import TpuStep


def choose_step(
    model: nn.Module,
    optimizer: SGD,
    loss: Loss,
    batch_size: int,
    compute: ComputeSettings | None = None,
    *,
    mixes: bool = False,
    ran_out: Callable[[int], None] = lambda images: None,
) -> TrainStep:
    """Return what does the steps of a run; the network is in training mode from here on.

    Args:
        model: The network, wrapped by `DistributedDataParallel` or `fully_shard` in a group.
        optimizer: Over its parameters.
        loss: Of logits and labels.
        batch_size: Images per step, all processes together.
        compute: None: this process alone, on the CPU.
        mixes: Whether images are mixed (MixUp).
        ran_out: Is told the micro-batch size that is tried next, when memory ran out.

    Raises:
        ConfigError: If the settings do not go with each other; names the value to change.
    """
    compute = compute or ComputeSettings()
    if compute.cuda_graph:
        _require_graph(compute, mixes)
        return CapturedStep(model, optimizer, loss, compute)
    if compute.device.is_tpu:
        return TpuStep(_network_for_tpu(model, compute, mixes), optimizer, loss, batch_size)
    return EagerStep(model, optimizer, loss, batch_size, compute, ran_out)


def _require_graph(compute: ComputeSettings, mixes: bool) -> None:
    if not compute.device.is_cuda or not compute.group.alone:
        raise ConfigError("cuda_graph: true is for one process on one GPU; set it to false")
    if mixes or compute.micro_batch_size:
        raise ConfigError("cuda_graph: true goes with neither MixUp nor micro_batch_size")


def _network_for_tpu(model: nn.Module, compute: ComputeSettings, mixes: bool) -> ResNetV2:
    if not isinstance(model, ResNetV2):
        raise ConfigError("device: tpu compiles the step by itself; set compile to false")
    if not compute.group.alone:
        raise ConfigError(
            "device: tpu is one process for all devices of a host; start it without torchrun"
        )
    if mixes or compute.micro_batch_size or compute.precision != "float32":
        raise ConfigError(
            "device: tpu goes with precision: float32 (XLA multiplies in bfloat16 there by itself) "
            "and without micro_batch_size and MixUp"
        )
    return model
