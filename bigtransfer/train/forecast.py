"""What is said of a fine-tuning before it begins: how long it takes, and whether sizes fit."""

from __future__ import annotations

from bigtransfer.artifacts.weights import WeightsMeta
from bigtransfer.errors import ConfigError
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
_SCALE = 4
"""The paper fine-tunes networks of 224 px at 128 to 480; beyond this factor it is said."""


def warn_if_long(
    grid: Grid,
    missing: list[int],
    upstream: WeightsMeta,
    machine: Machine,
    longest_seconds: float | None,
) -> None:
    """Say beforehand how long the missing cells take on a CPU, if that is more than a coffee."""
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
        raise ConfigError(
            f"{said}. Nothing was trained: the same with --yes begins it all the same, and with "
            "--set total_steps=100 --set batch_size=64 --set precrop=96 --set crop=64 it is a trial"
        )
    print(f"{said}. For a trial lower total_steps, batch_size, precrop and crop", flush=True)


def warn_of_another_size(grid: Grid, upstream: WeightsMeta) -> None:
    """Say that a network is given images of a scale that it has never seen."""
    crops = {grid.rule(cell.examples_per_class).crop for cell in grid.cells}
    for crop in sorted(crops):
        if "upstream" in grid.plan.inits and not 1 / _SCALE <= crop / upstream.crop <= _SCALE:
            print(
                f"{grid.plan.task}: warning: the network was trained at {upstream.crop} px and is "
                f"fine-tuned at {crop} px, where its features are of little use; set crop near "
                f"{upstream.crop}, or start from a network that was trained near {crop} px",
                flush=True,
            )
