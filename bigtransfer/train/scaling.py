"""How long a step takes on several nodes: computing, adding gradients up, waiting for lost nodes.

A ring all-reduce sends 2 (n - 1) / n of the gradients' bytes over each device's slowest link; most
of the backward pass hides it. `benchmarks/scaling.py` compares this with processes on one machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_BACKWARD = 2 / 3
"""Of the time that a step computes."""
_HIDDEN = 0.9
"""Of the backward pass, beside which gradients can travel: the first of them come a little late."""
_GRADIENT_BYTES = 4
_RESTART_SECONDS = 720.0
"""From a lost node to the next step: a Job waits before it makes a pod anew, ten seconds after a
node's first loss, twice as long after each, ten minutes at most; then image and checkpoint."""
_DAY = 86_400.0


@dataclass(frozen=True)
class Machines:
    """What a training runs on."""

    per_node: int
    """Devices of a node."""
    flops: float
    """That a device sustains, FLOP/s."""
    link: float
    """Between nodes, bytes/s for each device."""
    inside: float
    """Within a node, bytes/s for each device."""
    losses_per_day: float
    """Of one node."""
    checkpoint_seconds: float
    """Between two checkpoints."""


@dataclass(frozen=True)
class Scaled:
    """One training on so many devices."""

    devices: int
    nodes: int
    share: int
    """Images of a step that a device takes."""
    wire_bytes: float
    """That a device sends in a step."""
    computing: float
    """Seconds of a step."""
    step: float
    """Seconds of a step with what of the all-reduce is not hidden."""
    seconds: float
    """Of all steps, lost work included."""
    losses: float
    """Nodes that are expected to be lost."""
    lost_seconds: float

    @property
    def efficiency(self) -> float:
        """Return the share of a step that computes."""
        return self.computing / self.step


def step_seconds(computing: float, wire_seconds: float) -> float:
    """Return the time of a step whose all-reduce is hidden as far as it goes."""
    return computing + max(0.0, wire_seconds - _HIDDEN * _BACKWARD * computing)


def wire_bytes(parameters: int, devices: int) -> float:
    """Return what a device sends in a ring all-reduce of float32 gradients."""
    return 2 * (devices - 1) / devices * _GRADIENT_BYTES * parameters


def scaled(
    machines: Machines,
    nodes: int,
    *,
    batch_size: int,
    steps: int,
    image_flops: float,
    parameters: int,
) -> Scaled:
    """Return what a training takes on so many nodes.

    Args:
        machines: Of which kind they are.
        nodes: In all.
        batch_size: Images of a step, all devices together.
        steps: In all.
        image_flops: Of one image, forward and backward.
        parameters: Of the network.
    """
    devices = nodes * machines.per_node
    share = -(-batch_size // devices)
    computing = share * image_flops / machines.flops
    sent = wire_bytes(parameters, devices)
    speed = machines.link if nodes > 1 else machines.inside
    step = step_seconds(computing, sent / speed)
    busy = steps * step
    each = machines.checkpoint_seconds / 2 + _RESTART_SECONDS
    # A lost node costs all of them; while they wait and repeat, others are lost.
    rate = nodes * machines.losses_per_day / _DAY
    seconds = busy / (1 - rate * each) if rate * each < 1 else float("inf")
    losses = rate * seconds
    return Scaled(devices, nodes, share, sent, computing, step, seconds, losses, seconds - busy)


def doublings(nodes: int) -> Iterator[int]:
    """Yield 1, 2, 4 … nodes, and the number itself."""
    count = 1
    while count < nodes:
        yield count
        count *= 2
    yield nodes
