"""SGD with momentum as BiT uses it, and its update while the backward pass is still under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD


def make_optimizer(
    model: nn.Module, *, momentum: float, weight_decay: float, fused: bool = True
) -> SGD:
    """Return SGD with momentum (no Nesterov) over the parameters that require a gradient.

    Weight decay is L2 in the gradient, of kernels (convolutions and head) alone: gains, offsets
    and biases are not decayed. The paper does not say which; big_vision, by the same authors,
    decays kernels.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    kernels = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return SGD(groups, lr=0.0, momentum=momentum, fused=fused)


@contextmanager
def updates_in_backward(optimizer: SGD) -> Iterator[None]:
    """Let every `backward()` of the block be a step of the optimiser too.

    Each parameter is updated as soon as its gradient is complete, while that is still in the
    cache, and the gradient is let go: the memory of all gradients together is never needed. The
    weights are those of `optimizer.step()`, bit for bit, and so is the optimiser's state.

    One backward pass per step, and no other reader of the gradients: not with gradient
    accumulation, nor with gradients that are reduced over processes.
    """
    handles = [
        parameter.register_post_accumulate_grad_hook(_update(optimizer, group))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _update(optimizer: SGD, group: dict[str, Any]) -> Any:
    @torch.no_grad()
    def update(parameter: Tensor) -> None:
        assert parameter.grad is not None, "the hook runs when the gradient is there"
        state = optimizer.state[parameter]
        first = state.get("momentum_buffer") is None
        if first and group["momentum"]:
            state["momentum_buffer"] = torch.empty_like(parameter)
        buffers = [state["momentum_buffer"]] if group["momentum"] else []
        # What `SGD(fused=True)` calls for all parameters at once.
        torch._fused_sgd_(
            [parameter],
            [parameter.grad],
            buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=first,
        )
        parameter.grad = None

    return update
