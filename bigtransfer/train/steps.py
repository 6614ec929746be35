"""Which of the three kinds of step a run takes: eager, captured as CUDA graphs, or on a TPU."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import SGD

from bigtransfer.errors import ConfigError
from bigtransfer.model.cuda_graph import obstacle
from bigtransfer.model.resnet import ResNetV2
from bigtransfer.train.captured import CapturedStep
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.eager import EagerStep
from bigtransfer.train.loop import TrainStep
from bigtransfer.train.loss import Loss
from bigtransfer.train.stream import Stream, open_stream
from bigtransfer.train.tpu import TpuStep


def choose_step(
    model: nn.Module,
    optimizer: SGD,
    loss: Loss,
    batch_size: int,
    compute: ComputeSettings | None = None,
    *,
    mixes: bool = False,
    stream: Stream | None = None,
    ran_out: Callable[[int], None] = lambda images: None,
    say: Callable[[str], None] = lambda line: None,
) -> TrainStep:
    """Return what does the steps of a run; the network is in training mode from here on.

    Args:
        model: The network, wrapped by `DistributedDataParallel` or `fully_shard` in a group.
        optimizer: Over its parameters.
        loss: Of logits and labels.
        batch_size: Images per step, all processes together.
        compute: None: this process alone, on the CPU.
        mixes: Whether images are mixed (MixUp).
        stream: Of the device; None: one is opened.
        ran_out: Is told the micro-batch size that is tried next, when memory ran out.
        say: Receives a line where a GPU's steps are not captured that might be.

    Raises:
        ConfigError: If the settings do not go with each other; names the value to change.
    """
    compute = compute or ComputeSettings()
    if compute.device.is_tpu:
        return TpuStep(_network_for_tpu(model, compute, mixes), optimizer, loss, batch_size)
    captures = _captures(compute, say)
    stream = stream or open_stream(compute.device.torch)
    if captures:
        return CapturedStep(
            model, optimizer, loss, batch_size, compute, stream, ran_out, mixes=mixes
        )
    return EagerStep(model, optimizer, loss, batch_size, compute, stream, ran_out)


def _captures(compute: ComputeSettings, say: Callable[[str], None]) -> bool:
    """Say whether steps are recorded as CUDA graphs."""
    if compute.cuda_graph is False or (compute.cuda_graph == "auto" and not compute.device.is_cuda):
        return False
    found = _obstacle(compute)
    if found is None:
        return True
    if compute.cuda_graph is True:
        raise ConfigError(f"cuda_graph: true does not go with {found}; set it to auto or false")
    say(f"steps are not captured as CUDA graphs: {found}")
    return False


def _obstacle(compute: ComputeSettings) -> str | None:
    """Return what is in the way of a recording."""
    if not compute.group.alone:
        return "several processes, whose collectives are not recorded"
    if compute.compiled:
        return "compile: true, which has its own"
    return obstacle(compute.device.torch)


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
