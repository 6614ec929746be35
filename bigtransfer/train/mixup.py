"""MixUp as BiT applies it: one lambda per optimiser step, for the whole batch.

Zhang et al. 2018, arXiv 1710.09412; BiT: arXiv 1912.11370, section 3.3. The partner is the
reversed batch, as in the authors' TF2 and JAX code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bigtransfer.data.randomness import keyed_generator

_PURPOSE = 77


def mixup_lambda(alpha: float | None, seed: int, step: int) -> float:
    """Return lambda ~ Beta(alpha, alpha), keyed by (seed, step); 1 without MixUp."""
    if not alpha:
        return 1.0
    return float(keyed_generator(seed, step, _PURPOSE).beta(alpha, alpha))


def mix(x: Tensor, lam: float) -> Tensor:
    """Return lambda * x + (1 - lambda) * reversed x, shape as x (B, ...)."""
    return x if lam == 1.0 else torch.lerp(x.flip(0), x, lam)


def mixed_loss(logits: Tensor, labels: Tensor, lam: float) -> Tensor:
    """Return lambda * CE(labels) + (1 - lambda) * CE(reversed labels), a scalar."""
    loss = F.cross_entropy(logits, labels)
    if lam == 1.0:
        return loss
    return lam * loss + (1 - lam) * F.cross_entropy(logits, labels.flip(0))
