"""MixUp as BiT applies it: one lambda per optimiser step, for the whole batch.

Zhang et al. 2018, arXiv 1710.09412; BiT: arXiv 1912.11370, section 3.3. The partner is the
reversed batch, as in the authors' TF2 and JAX code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigtransfer.data.randomness import keyed_generator
from bigtransfer.train.loss import Loss

_PURPOSE = 77


def mixup_lambda(alpha: float | None, seed: int, step: int) -> float:
    """Return lambda ~ Beta(alpha, alpha), keyed by (seed, step); 1 without MixUp."""
    if not alpha:
        return 1.0
    return float(keyed_generator(seed, step, _PURPOSE).beta(alpha, alpha))


def mix(x: Tensor, partner: Tensor, lam: float) -> Tensor:
    """Return lambda * x + (1 - lambda) * partner, shape as x (B, ...)."""
    return torch.lerp(partner, x, lam)


def mixed_loss(
    loss: Loss, logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: float
) -> Tensor:
    """Return lambda * loss(labels) + (1 - lambda) * loss(partner's labels), a scalar."""
    own = loss(logits, labels)
    return own if lam == 1.0 else lam * own + (1 - lam) * loss(logits, partner_labels)
