"""A network and its optimiser over the processes of a run: alone, replicated (DDP), split (FSDP2).

Checkpoints are the same for all of them: whole tensors by name. So a run may go on with another
number of processes, or split where it was replicated.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from bigtransfer.model.resnet import ResNetV2, Unit
from bigtransfer.train.checkpoints import State
from bigtransfer.train.group import Group
from bigtransfer.train.optimizer import make_optimizer
from bigtransfer.train.state import MOMENTUM_BUFFER, live_state

_BUCKET_MIB = 25


def parallelize(
    model: ResNetV2,
    state: State | None,
    group: Group,
    *,
    parallel: str,
    compiled: bool,
    momentum: float,
    weight_decay: float,
) -> tuple[nn.Module, SGD]:
    """Give every process one state; return what is called in training, and the optimiser.

    Args:
        model: On its device.
        state: On the main process: what to go on from, if anything. Elsewhere None.
        group: The processes.
        parallel: `ddp`: all weights in every process; `fsdp`: weights and momentum are split.
        compiled: Whether to compile the network.
        momentum: Of SGD.
        weight_decay: Of SGD.
    """
    if state is not None:
        model.load_state_dict(state["weights"])
    for tensor in model.state_dict().values():
        group.broadcast(tensor)
    split = parallel == "fsdp" and not group.alone
    if split:
        for parameter in model.parameters():  # FSDP2 splits no other memory layout
            parameter.data = parameter.data.contiguous()
        units: list[Any] = [module for module in model.modules() if isinstance(module, Unit)]
        for unit in units:
            fully_shard(unit, reshard_after_forward=False)
        for unit, later in pairwise(units):  # the next weights come while this unit computes
            unit.set_modules_to_forward_prefetch([later])
        fully_shard(model, reshard_after_forward=False)
        register_fsdp_forward_method(model, "features")
    optimizer = make_optimizer(model, momentum=momentum, weight_decay=weight_decay, fused=not split)
    _give_momentum(model, optimizer, None if state is None else state["momentum"], group)
    called: nn.Module = model
    if compiled:
        called = torch.compile(model)  # type: ignore[assignment]  # torch types it as a function
    if not group.alone and not split:
        called = DistributedDataParallel(
            called,
            gradient_as_bucket_view=True,
            bucket_cap_mb=_BUCKET_MIB,
            device_ids=[group.device] if group.device.type == "cuda" else None,
        )
    return called, optimizer


@torch.no_grad()
def whole_state(model: nn.Module, optimizer: SGD) -> State:
    """Return weights and momentum as whole tensors; every process must call it.

    They are the live tensors, not copies, where nothing is split; but for BatchNorm's statistics,
    which change in the forward pass already.
    """
    state = live_state(model, optimizer)
    for name, buffer in model.named_buffers():
        state["weights"][name] = buffer.clone()
    return {
        group: {name: _whole(tensor) for name, tensor in tensors.items()}
        for group, tensors in state.items()
    }


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def _give_momentum(
    model: nn.Module, optimizer: SGD, buffers: dict[str, Tensor] | None, group: Group
) -> None:
    for name, parameter in model.named_parameters():
        buffer = None if buffers is None else buffers.get(name)
        if not group.agree(int(buffer is not None)):
            continue
        if isinstance(parameter, DTensor):
            own: Any = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        else:
            own = torch.empty_like(parameter)  # in the parameter's memory layout
        if buffer is not None:
            own.copy_(buffer)
        group.broadcast(own)
        if isinstance(parameter, DTensor):
            own = distribute_tensor(own, parameter.device_mesh, parameter.placements)
        optimizer.state[parameter][MOMENTUM_BUFFER] = own
