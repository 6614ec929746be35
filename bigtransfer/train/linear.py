"""A linear head on features that stay as they are: regularised regression, strength by folds.

The loss is convex, so where it ends depends on the data and the strength alone. A strength stands
against the *sum* of the images' losses: `sum_i w_i loss_i + strength / 2 * |W|^2`, the reciprocal
of scikit-learn's `C`. The bias is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

STRENGTHS = (1e4, 3e3, 1e3, 3e2, 1e2, 3e1, 1e1, 3.0, 1.0, 0.1)
"""What the folds choose from, the strongest first: each starts where the one before ended."""
USUAL_STRENGTH = 1e2
"""Where a class has a single image and nothing can be held out."""
FOLDS = 3
_MOST_TO_CHOOSE = 6_000
"""Images, mirror images aside, by which a strength is chosen; more tell little more."""
_AS_GOOD = 0.01
"""Nats per image by which a weaker strength must be better: where all are told apart, the loss
falls for ever, and weights that grow with it would answer to a single grey level."""
_PATIENCE = 2
"""Strengths in a row that are worse than the best one before the weaker ones are left out."""
_ITERATIONS = 200
_CHOOSING_ITERATIONS = 40


@dataclass(frozen=True)
class Head:
    """A fitted head: `features @ weight.T + bias`."""

    weight: Tensor
    """(C, F), float32."""
    bias: Tensor
    """(C,)."""
    loss: float
    """Mean loss of the images that it was fitted on."""


@dataclass(frozen=True)
class Examples:
    """Images as a head sees them."""

    features: NDArray[np.float32]
    """(N, V, F): of each image and, where V is 2, of its mirror image."""
    targets: NDArray[np.float32]
    """(N, C): 1 for each label that an image has."""
    several: bool
    """Whether an image may have several labels: a sigmoid each instead of one softmax."""

    def some(self, positions: NDArray[np.int64]) -> Examples:
        """Return some of the images."""
        return Examples(self.features[positions], self.targets[positions], self.several)


def fit_head(examples: Examples, weights: NDArray[np.float64], strength: float) -> Head:
    """Fit a head.

    Args:
        examples: Images.
        weights: (N,) how often each counts, 0 and fractions allowed.
        strength: Of the regularisation.
    """
    used = np.flatnonzero(weights)
    basis = _Basis(examples.some(used))
    return _Fit(basis, examples.several).solve(
        _tensor(weights[used]), strength, iterations=_ITERATIONS
    )


def choose_strength(examples: Examples, weights: NDArray[np.float64], seed: int = 0) -> float:
    """Return the strength by which images that were held out have the smallest loss.

    An image and its mirror image are in one fold, and so are all classes as far as they can.

    Args:
        examples: Images that all heads of a task are drawn from.
        weights: (N,) how often each counts.
        seed: Of the folds.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    folds = _folds(examples.targets, generator)
    if folds is None:
        return USUAL_STRENGTH
    chosen = np.flatnonzero(folds >= 0)
    examples, weights, folds = examples.some(chosen), weights[chosen], folds[chosen]
    basis = _Basis(examples)
    count = int(folds.max()) + 1
    fits = [_Fit(basis, examples.several) for _ in range(count)]
    best, best_loss, worse = USUAL_STRENGTH, np.inf, 0
    for strength in STRENGTHS:
        loss = 0.0
        for number, fit in enumerate(fits):
            held = folds == number
            # The strength stands against a sum: of all images in the end, of a part of them here.
            share = weights[~held].sum() / weights.sum()
            fit.solve(
                _tensor(np.where(held, 0, weights)),
                strength * share,
                iterations=_CHOOSING_ITERATIONS,
            )
            loss += fit.loss_of(_tensor(np.where(held, weights, 0)))
        if loss < best_loss - _AS_GOOD * weights.sum():
            best, best_loss, worse = strength, loss, 0
        else:
            worse += 1
            if worse == _PATIENCE:
                break
    return best


def _folds(
    targets: NDArray[np.float32], generator: np.random.Generator
) -> NDArray[np.int64] | None:
    """Return the fold of each image, -1 if it is left out; None if a class has a single image."""
    result = np.full(len(targets), -1, np.int64)
    most = min(len(targets), _MOST_TO_CHOOSE)
    if (targets.sum(1) != 1).any():  # several labels: images are dealt out as they come
        if len(targets) < 2:
            return None
        order = generator.permutation(len(targets))[:most]
        result[order] = np.arange(most) % min(FOLDS, most)
        return result
    labels = targets.argmax(1)
    counts = np.bincount(labels)
    fewest = int(counts[counts > 0].min())
    if fewest < 2:
        return None
    share, dealt = most / len(targets), 0
    for label in np.flatnonzero(counts):
        members = generator.permutation(np.flatnonzero(labels == label))
        members = members[: max(2, round(share * len(members)))]
        result[members] = (dealt + np.arange(len(members))) % FOLDS
        dealt += len(members)
    return result


class _Basis:
    """Centred and scaled features, turned into as few dimensions as the images span.

    Exact: the best weights are a combination of the images, and a turn leaves their norm as it is.
    """

    def __init__(self, examples: Examples) -> None:
        n, views, width = examples.features.shape
        x = torch.from_numpy(np.ascontiguousarray(examples.features)).reshape(-1, width)
        self._mean = x.mean(0)
        x = x - self._mean
        self._scale = float(x.square().mean().sqrt().clamp_min(1e-12))
        x = x / self._scale
        self._turn: Tensor | None = None
        if len(x) < width:
            # The eigenvectors of the small matrix of products are those of the large one, too.
            values, vectors = torch.linalg.eigh((x @ x.T).double())
            kept = values > values[-1].clamp_min(1e-12) * 1e-9
            roots = values[kept].sqrt()
            self._turn = (x.T.double() @ (vectors[:, kept] / roots)).float()
            x = (vectors[:, kept] * roots).float()
        self.x, self.views = x, views
        self.targets = torch.from_numpy(examples.targets).repeat_interleave(views, 0)
        self.images = n

    def head(self, weight: Tensor, bias: Tensor, loss: float) -> Head:
        """Return a head for the features as the network gives them."""
        own = weight if self._turn is None else weight @ self._turn.T
        own = own / self._scale
        return Head(own, bias - own @ self._mean, loss)


class _Fit:
    """One regression, which begins where it ended before."""

    def __init__(self, basis: _Basis, several: bool) -> None:
        self._basis, self._several = basis, several
        classes = basis.targets.shape[1]
        self._weight = torch.zeros(classes, basis.x.shape[1])
        self._bias = torch.zeros(classes)

    def solve(self, weights: Tensor, strength: float, *, iterations: int) -> Head:
        """Fit to images, (N,) of which count so often; return the head."""
        total = float(weights.sum())
        own = (weights / self._basis.views / total).repeat_interleave(self._basis.views)
        used = torch.nonzero(own).flatten()
        all_of_them = len(used) == len(own)
        x = self._basis.x if all_of_them else self._basis.x[used]
        targets = self._basis.targets if all_of_them else self._basis.targets[used]
        own = own[used]
        weight, bias = self._weight.requires_grad_(True), self._bias.requires_grad_(True)
        solver = torch.optim.LBFGS(
            [weight, bias],
            max_iter=iterations,
            history_size=10,
            tolerance_grad=1e-6,
            tolerance_change=1e-8,
            line_search_fn="strong_wolfe",
        )
        value = torch.zeros(())

        def loss() -> float:
            nonlocal value
            solver.zero_grad()
            value = (own * self._losses(x @ weight.T + bias, targets)).sum()
            whole = value + strength / (2 * total) * weight.square().sum()
            torch.autograd.backward(whole)
            return float(whole.detach())

        solver.step(loss)  # type: ignore[no-untyped-call]
        self._weight, self._bias = weight.detach(), bias.detach()
        return self._basis.head(self._weight, self._bias, float(value.detach()))

    def loss_of(self, weights: Tensor) -> float:
        """Return the summed loss of images, (N,) of which count so often."""
        own = (weights / self._basis.views).repeat_interleave(self._basis.views)
        used = torch.nonzero(own).flatten()
        logits = self._basis.x[used] @ self._weight.T + self._bias
        return float((own[used] * self._losses(logits, self._basis.targets[used])).sum())

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image, (N,)."""
        if self._several:
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        return -(F.log_softmax(logits, 1) * targets).sum(1)


def _tensor(weights: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(weights.astype(np.float32))
