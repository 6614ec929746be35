"""What a training is at a step: weights and momentum by name, and a fingerprint of what made it.

All other state is a function of the step: order, augmentation and MixUp are keyed by it.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD

from bigtransfer.errors import CheckpointError
from bigtransfer.storage import sha256_json
from bigtransfer.train.checkpoints import State, is_finite

MOMENTUM_BUFFER = "momentum_buffer"
"""Key of a parameter's momentum in the state of `torch.optim.SGD`."""


def fingerprint(code: str | None, **parts: Any) -> str:
    """Return 16 hex digits over JSON values and, where given, over the version of the code."""
    return sha256_json({"code": code, **parts})[:16]


def live_state(model: nn.Module, optimizer: SGD) -> State:
    """Return the tensors that training changes, by name; of the model, not copies."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    momentum = {
        names[id(parameter)]: state[MOMENTUM_BUFFER]
        for parameter, state in optimizer.state.items()
        if state.get(MOMENTUM_BUFFER) is not None
    }
    return {"weights": dict(model.state_dict()), "momentum": momentum}


def state_bytes(model: nn.Module) -> int:
    """Return the bytes of a checkpoint: weights, and momentum of each parameter."""
    tensors = [*model.state_dict().values(), *model.parameters()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def require_fit(state: State, model: nn.Module, where: str) -> None:
    """Refuse a state that is not one of this network's.

    Raises:
        CheckpointError: Naming the first tensor that does not fit.
    """
    own = model.state_dict()
    for name in sorted(own.keys() ^ state["weights"].keys()):
        what = "lacks" if name in own else "holds an unknown"
        raise CheckpointError(f"{where} {what} tensor {name!r}: it is of another network")
    parameters = {name for name, _ in model.named_parameters()}
    if unknown := sorted(state["momentum"].keys() - parameters):
        raise CheckpointError(f"{where} holds momentum of the unknown parameter {unknown[0]!r}")
    for group in state.values():
        for name, tensor in group.items():
            if tensor.shape != own[name].shape:
                raise CheckpointError(
                    f"{where}: tensor {name!r} is {tuple(tensor.shape)}, this network needs "
                    f"{tuple(own[name].shape)}: it is of another architecture or class count"
                )
            if not is_finite(tensor):
                raise CheckpointError(f"{where}: tensor {name!r} holds NaN or Inf")
