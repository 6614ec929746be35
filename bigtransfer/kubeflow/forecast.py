"""How long upstream training takes on a pool, and what it costs, before anything is submitted."""

from __future__ import annotations

from dataclasses import dataclass

from bigtransfer.config import TPU, Params, PoolParams
from bigtransfer.model.macs import FLOPS_PER_MAC, forward_macs
from bigtransfer.model.peaks import accelerator_named
from bigtransfer.progress import duration

_UTILISATION = 0.40
"""Of an accelerator's peak, by a training that is well fed."""
_FLOAT32 = 0.5
"""TensorFloat-32 beside bfloat16, of the same peak."""
_BEST_GPU = ("an H100", 989e12)
_BEST_TPU = ("a TPU v6e", 918e12)
_CORE_FLOPS = 40e9
"""That a core of a server sustains in convolutions, at most."""
_CLASSES = 1000
_DAY = 86_400.0


@dataclass(frozen=True)
class Forecast:
    """Of one training on its nodes."""

    seconds: float
    rate: str
    """What it is reckoned with, in words."""
    cost: float | None
    """In whatever money the pool's price is; None: it has none."""

    @property
    def days(self) -> float:
        """Return the same in days."""
        return self.seconds / _DAY

    def __str__(self) -> str:
        cost = "" if self.cost is None else f", {self.cost:,.0f} at the pool's price"
        return f"about {duration(self.seconds)}{cost} ({self.rate})"


def examples_of(params: Params) -> int | None:
    """Return how many images are trained on upstream, where the params say so."""
    found = params.examples_of(params.pretrain.dataset)
    return None if found is None else params.pretrain.trained_on(found)


def forecast(params: Params, examples: int) -> Forecast:
    """Return how long upstream training takes; never less than well-fed nodes need.

    Args:
        params: The recipe and the pools.
        examples: Training images.
    """
    recipe, pool = params.pretrain, params.cluster.pool_of("pretrain")
    macs = forward_macs(recipe.architecture, _CLASSES, recipe.crop, recipe.root)
    flops, rate = _rate(pool, recipe.precision)
    nodes = params.cluster.nodes_of("pretrain")
    seconds = FLOPS_PER_MAC * macs * examples * recipe.epochs / (flops * nodes)
    price = pool.price_per_hour
    cost = None if price is None else nodes * price * seconds / 3600
    each = "" if nodes == 1 else f" and {nodes} nodes"
    how = f"{examples:,} images, {recipe.epochs:g} epochs at {rate}{each}"
    return Forecast(seconds, how, cost)


def _rate(pool: PoolParams, precision: str) -> tuple[float, str]:
    """Return what a node of a pool sustains, FLOP/s, and how that is known."""
    if pool.accelerator is None:
        cores = float(pool.cpu[:-1]) / 1000 if pool.cpu.endswith("m") else float(pool.cpu)
        cores = cores or 1.0
        each = _CORE_FLOPS if pool.tflops is None else 1e12 * pool.tflops / cores
        return cores * each, f"{each / 1e9:,.0f} GFLOP/s on each of {cores:g} cores"
    count = pool.count
    if pool.tflops is not None:
        flops = 1e12 * pool.tflops
        return count * flops, f"the pool's {pool.tflops:g} TFLOP/s on each of {count}"
    named = accelerator_named(list(pool.selector.values()))
    name, peak = named or (_BEST_TPU if pool.accelerator == TPU else _BEST_GPU)
    share = _UTILISATION * (1.0 if precision == "bfloat16" or pool.accelerator == TPU else _FLOAT32)
    as_if = "" if named else ", as none is named in the pool's selector"
    return (
        count * share * peak,
        f"{share:.0%} of {peak / 1e12:,.0f} TFLOP/s, {name}{as_if}, on each of {count}",
    )
