from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bigtransfer.model import ResNetV2, create_model
from bigtransfer.train.optimizer import make_optimizer, updates_in_backward


def train(early: bool) -> tuple[ResNetV2, list[Tensor]]:
    model = create_model("R14x0.25", 3, "small", seed=0)
    optimizer = make_optimizer(model, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        x = torch.randn(8, 3, 10, 10, generator=generator)
        y = torch.randint(3, (8,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (step + 1)
        if early:
            with updates_in_backward(optimizer):
                F.cross_entropy(model(x), y).backward()
        else:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model, [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]


def test_updates_in_backward_are_those_of_a_step_bit_for_bit() -> None:
    (early, early_momentum), (late, late_momentum) = train(early=True), train(early=False)
    for a, b in zip(early.parameters(), late.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.grad is None
    assert all(torch.equal(a, b) for a, b in zip(early_momentum, late_momentum, strict=True))


def test_after_the_block_backward_is_only_backward_again() -> None:
    model = create_model("R14x0.25", 3, "small", seed=0)
    with updates_in_backward(make_optimizer(model, momentum=0.9, weight_decay=0.0)):
        pass
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model.head.bias.grad is not None


def test_kernels_are_decayed_and_gains_are_not() -> None:
    model = create_model("R14x0.25", 3, "small")
    decayed, others = make_optimizer(model, momentum=0.9, weight_decay=1e-4).param_groups
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in others["params"]} == {1}
    assert (decayed["weight_decay"], others["weight_decay"]) == (1e-4, 0.0)
