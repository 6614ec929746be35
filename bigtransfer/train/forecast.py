"""What is said of a fine-tuning before it begins: how long it takes, and whether sizes fit."""

from __future__ import annotations

from bigtransfer.artifacts.weights import WeightsMeta
from bigtransfer.errors import TooLongError
from bigtransfer.model.macs import forward_macs
from bigtransfer.model.processor import device_named, use_cpu
from bigtransfer.model.resnet import create_model
from bigtransfer.progress import duration
from bigtransfer.train.compute import Machine
from bigtransfer.train.devices import Device
from bigtransfer.train.fitting import images_per_second
from bigtransfer.train.grid import Grid

_LONG_MACS = 3e13
_TRIAL_SECONDS = 2.0
_TRIAL_CROP, _TRIAL_BATCH, _TRIAL_TAKES = 128, 64, 40 * 60
"""Pixels, images and seconds of the smaller rule that is offered."""
_FEWEST_STEPS, _MOST_STEPS = 20, 500
_SCALE = 4
"""The paper fine-tunes networks of 224 px at 128 to 480; beyond this factor it is said."""


def warn_if_long(
    grid: Grid,
    missing: list[int],
    upstream: WeightsMeta,
    machine: Machine,
    longest_seconds: float | None,
) -> None:
    """Say beforehand how long the missing cells take on a CPU, if that is more than a coffee.

    Raises:
        TooLongError: If it is longer than `longest_seconds`.
    """
    rules = [grid.rule(grid.cells[number].examples_per_class) for number in missing]
    if not rules:
        return
    images, crop = sum(rule.total_steps * rule.batch_size for rule in rules), rules[0].crop
    macs = forward_macs(upstream.architecture, grid.num_classes, crop, upstream.root)
    if device_named(machine.device).type != "cpu" or images * macs < _LONG_MACS:
        return
    use_cpu(machine.threads)
    model = create_model(upstream.architecture, grid.num_classes, upstream.root, norm=upstream.norm)
    rate = images_per_second(model, crop, Device(), 1, _TRIAL_SECONDS)
    said = (
        f"{grid.plan.task}: about {duration(images / rate)} on this CPU ({images:,} images at "
        f"{rate:.1f}/s, tried now); a GPU does it in a small part of that"
    )
    if longest_seconds is not None and images / rate > longest_seconds:
        smaller, takes = _smaller(grid, len(missing), macs * rate, crop, upstream)
        raise TooLongError(said, smaller, takes)
    print(f"{said}. For a trial lower total_steps, batch_size, precrop and crop", flush=True)


def _smaller(
    grid: Grid, cells: int, macs_per_second: float, crop: int, upstream: WeightsMeta
) -> tuple[dict[str, int], str]:
    """Return a smaller rule that this CPU does in less than an hour, and how long it takes.

    Few steps are no help where the network alone is too large: then they are the fewest.
    """
    smaller = min(crop, _TRIAL_CROP)
    macs = forward_macs(upstream.architecture, grid.num_classes, smaller, upstream.root)
    seconds_per_step = cells * _TRIAL_BATCH * macs / macs_per_second
    steps = max(_FEWEST_STEPS, min(_MOST_STEPS, int(_TRIAL_TAKES / seconds_per_step)))
    values = {"total_steps": steps, "batch_size": _TRIAL_BATCH}
    if smaller < crop:
        values |= {"precrop": smaller * 5 // 4, "crop": smaller}
    return values, f"about {duration(steps * seconds_per_step)}"


def warn_of_another_size(grid: Grid, upstream: WeightsMeta) -> None:
    """Say that a network is given images of a scale that it has never seen."""
    if "upstream" in grid.plan.inits:
        for crop in sorted({grid.rule(cell.examples_per_class).crop for cell in grid.cells}):
            warn_of_another_crop(grid.plan.task, crop, upstream.crop)


def warn_of_another_crop(task: str, crop: int, own: int) -> None:
    """Say it of one crop, where it is far from the network's own; in pixels."""
    if not 1 / _SCALE <= crop / own <= _SCALE:
        print(
            f"{task}: warning: the network was trained at {own} px and is given images at {crop} "
            f"px, where its features are of little use; set crop near {own}, or start from a "
            f"network that was trained near {crop} px",
            flush=True,
        )
