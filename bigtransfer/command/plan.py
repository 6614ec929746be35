"""`bigtransfer plan`: what an upstream training would do and take, before it starts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bigtransfer import config
from bigtransfer.artifacts.shards import ShardsSummary
from bigtransfer.config import PretrainParams
from bigtransfer.errors import ConfigError, StorageError
from bigtransfer.progress import duration
from bigtransfer.storage import free_bytes

if TYPE_CHECKING:
    from bigtransfer.train.devices import Device
    from bigtransfer.train.planning import Plan

_GIB = 2**30
_MFU = 0.40
"""Utilisation that device-hours of other devices are reckoned with."""
_CHECKPOINT_SECONDS = 300
_INSIDE_BYTES = 450e9
"""Of a link within a node, e.g. NVLink, bytes/s for each device."""
_PROBE_IMAGES = 64
_PROBE_FLOPS_ON_CPU = 5e11
"""A step that takes more is not tried on a CPU."""
_CLASSES = {1_281_167: 1000, 14_197_122: 21_843, 300_000_000: 18_291}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bigtransfer plan`."""
    parser.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        metavar="FILE",
        help="params file (default: %(default)s)",
    )
    parser.add_argument(
        "--overlay", type=Path, metavar="FILE", help="YAML laid over it, e.g. pipelines/bit_m.yaml"
    )
    parser.add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="processes, one device each (default: 1)",
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="memory of a device (default: of this machine's GPU)",
    )
    parser.add_argument(
        "--classes", type=int, metavar="N", help="outputs of the head (default: as the shards say)"
    )
    parser.add_argument(
        "--probe-seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="to try the speed of this machine; 0: not (default: 5)",
    )
    parser.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="DEVICE=PER_HOUR",
        help="e.g. H100=2.49, may be given several times",
    )

    nodes = parser.add_argument_group("several nodes", "a table from one node to so many")
    nodes.add_argument("--nodes", type=int, metavar="N", help="each with --per-node devices")
    nodes.add_argument("--accelerator", metavar="X", help="e.g. H100, A100, tpu-v5p")
    nodes.add_argument("--per-node", type=int, default=8, metavar="N", help="(default: 8)")
    nodes.add_argument(
        "--images-per-second",
        type=float,
        metavar="R",
        help=f"of one device, measured (default: {_MFU:.0%}% of the accelerator's peak)",
    )
    nodes.add_argument(
        "--link",
        type=float,
        default=400.0,
        metavar="GBIT",
        help="between nodes for each device, Gbit/s (default: 400)",
    )
    nodes.add_argument(
        "--losses",
        type=float,
        default=0.0,
        metavar="PER_DAY",
        help="of one node, e.g. 1 for spot nodes (default: 0)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the plan.

    Raises:
        ConfigError: If a value does not fit.
    """
    if arguments.devices < 1:
        raise ConfigError(f"--devices {arguments.devices}: give 1 or more")
    prices = [_price(text) for text in arguments.price]
    _check_nodes(arguments)
    params = config.load(arguments.params, arguments.overlay).pretrain
    all_of_them, classes = _data(params, arguments)
    examples = params.trained_on(all_of_them)

    from bigtransfer.train.devices import choose_device
    from bigtransfer.train.planning import plan

    device = choose_device("auto")
    memory = int(arguments.memory * _GIB) if arguments.memory else device.memory_bytes
    made = plan(params, examples, classes, arguments.devices, memory)
    schedule = made.schedule
    decays = " ".join(f"{step:,}" for step in schedule.decay_steps)
    _print("network", f"{params.architecture}, {classes:,} classes, {made.parameters:,} parameters")
    _print("data", f"{examples:,} training images, {params.epochs:g} epochs, crop {params.crop} px")
    _print("steps", f"{schedule.total_steps:,} of {params.batch_size:,} images")
    _print(
        "learning rate",
        f"{params.base_lr:g} after {params.warmup_steps:,} steps of warm-up, "
        f"/ 10 after {decays or 'none'}",
    )
    _print("images", f"{made.images:,}")
    _print("training FLOPs", f"{made.flops:.2g}")
    _print(
        "devices",
        f"{arguments.devices}, each {made.share:,} images per step"
        + _how(params, arguments.devices),
    )
    if made.micro_batch_size is None:
        _print("micro-batch", _too_big(params, made, memory or 0))
    else:
        passes = made.accumulation_steps
        _print(
            "micro-batch",
            f"{made.micro_batch_size:,} images, {passes:,} "
            f"forward pass{'es' if passes > 1 else ''} per step",
        )
    total = f" of {memory / _GIB:.1f} GiB" if memory else ""
    _print(
        "memory per device",
        f"{made.memory_per_device / _GIB:.2f} GiB{total}: weights, momentum and gradients "
        f"{made.state_per_device / _GIB:.2f}, standardised kernels "
        f"{made.fixed_per_device / _GIB:.2f}, each image {made.kept_per_image / 2**20:.1f} MiB",
    )
    _print_checkpoints(made.checkpoint)
    if arguments.nodes is not None:
        _print_nodes(params, made, arguments, dict(prices))
        return
    _print_times(params, made, classes, device, arguments, prices)


def _how(params: PretrainParams, devices: int) -> str:
    if devices == 1:
        return ""
    return f" ({params.parallel})"


def _data(params: PretrainParams, arguments: argparse.Namespace) -> tuple[int, int]:
    """Return training images and classes, from the shards where they are written."""
    shards = Path("artifacts") / "datasets" / params.dataset / "shards"
    if params.examples is None:
        try:
            summary = ShardsSummary.read(shards)
            own = summary.classes
        except StorageError as error:
            raise ConfigError(
                f"dataset {params.dataset!r} is not sharded yet, so its images are not counted; "
                "run `dvc repro shard`, or set pretrain.examples"
            ) from error
        return summary.splits["train"], arguments.classes or own
    classes = arguments.classes or _CLASSES.get(params.examples)
    if classes is None:
        raise ConfigError(
            "with pretrain.examples the number of classes is not known; add --classes"
        )
    return params.examples, classes


def _too_big(params: PretrainParams, made: Plan, memory: float) -> str:
    advice = [
        text
        for text, possible in (
            ("parallel: fsdp and more --devices", params.parallel != "fsdp"),
            ("recompute: units", params.recompute != "units"),
            ("precision: bfloat16", params.precision != "bfloat16"),
            ("more --devices", params.parallel == "fsdp"),
        )
        if possible
    ]
    needed = made.memory_per_device / _GIB
    return (
        f"not one image fits into {memory / _GIB:.1f} GiB ({needed:.1f} needed); try "
        + ", ".join(advice)
    )


def _print_checkpoints(size: int) -> None:
    free = free_bytes(Path.cwd())
    needed = 4 * size
    verdict = "enough" if free >= needed else "NOT enough"
    _print(
        "checkpoints",
        f"{_bytes(size)} each, four at a time: {_bytes(needed)}; here {_bytes(free)} are free, "
        f"{verdict}",
    )


def _print_times(
    params: PretrainParams,
    made: Plan,
    classes: int,
    device: Device,
    arguments: argparse.Namespace,
    prices: list[tuple[str, float]],
) -> None:
    from bigtransfer.model.peaks import peak_flops
    from bigtransfer.model.processor import use_cpu
    from bigtransfer.model.resnet import create_model
    from bigtransfer.train.devices import is_out_of_memory
    from bigtransfer.train.fitting import images_per_second
    from bigtransfer.train.loss import loss_named

    per_image = made.flops / made.images
    images = min(made.micro_batch_size or 1, _PROBE_IMAGES)
    if not device.is_cuda:
        images = max(1, min(images, int(_PROBE_FLOPS_ON_CPU / per_image)))
    if arguments.probe_seconds <= 0:
        _print("time", "not tried (--probe-seconds 0)")
    elif made.micro_batch_size is None and device.is_cuda:
        _print("time", "not tried: it does not fit")
    elif not device.is_cuda and per_image * images > _PROBE_FLOPS_ON_CPU:
        _print("time here", f"not tried: one image takes {per_image:.1g} FLOPs, too much for a CPU")
    else:
        try:
            use_cpu(params.threads)
            model = create_model(params.architecture, classes, params.root, norm=params.norm)
            rate = images_per_second(
                model.recompute(params.recompute),
                params.crop,
                device,
                images,
                arguments.probe_seconds,
                precision=params.precision,
                loss=loss_named(params.loss),
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            _print("time here", f"not known: {images} images do not fit into {device.name}")
            rate = 0.0
        if rate:
            took = duration(made.images / rate / arguments.devices)
            each = "" if arguments.devices == 1 else f" on {arguments.devices} like it"
            _print(
                "time here",
                f"{took}{each} at {rate:,.1f} images/s on {device.name} (micro-batch "
                f"{images}, tried now), reading data and evaluation not counted",
            )
    for name, price in prices:
        peak = peak_flops(name)
        if peak is None:
            raise ConfigError(f"--price {name}=…: no such device is known; e.g. H100, A100, L4, T4")
        device_hours = made.flops / (peak * _MFU) / 3600
        _print(
            name,
            f"{device_hours:,.0f} device-hours at {_MFU:.0%} of {peak / 1e12:,.0f} TFLOP/s, "
            f"{duration(3600 * device_hours / arguments.devices)} on {arguments.devices}; "
            f"{device_hours * price:,.0f} at {price:g} per hour",
        )


def _check_nodes(arguments: argparse.Namespace) -> None:
    """Refuse numbers of nodes that are none.

    Raises:
        ConfigError: Names the flag.
    """
    if arguments.nodes is None:
        return
    if arguments.accelerator is None and arguments.images_per_second is None:
        raise ConfigError("--nodes needs --accelerator (e.g. H100) or --images-per-second")
    for flag, least in (("nodes", 1), ("per_node", 1), ("losses", 0)):
        if getattr(arguments, flag) < least:
            raise ConfigError(f"--{flag.replace('_', '-')}: give {least} or more")
    for flag in ("link", "images_per_second"):
        value = getattr(arguments, flag)
        if value is not None and not 0 < value < 1e9:
            raise ConfigError(f"--{flag.replace('_', '-')} {value:g}: give more than 0")
    arguments.devices = arguments.nodes * arguments.per_node


def _print_nodes(
    params: PretrainParams, made: Plan, arguments: argparse.Namespace, prices: dict[str, float]
) -> None:
    from bigtransfer.model.peaks import accelerator_named
    from bigtransfer.train.scaling import Machines, doublings, scaled

    image_flops = made.flops / made.images
    name = arguments.accelerator or "device"
    if arguments.images_per_second is not None:
        flops = arguments.images_per_second * image_flops
        rate = f"{arguments.images_per_second:,.1f} images/s, as given"
    else:
        known = accelerator_named([name])
        if known is None:
            raise ConfigError(f"--accelerator {name!r} is not known; give --images-per-second")
        flops = _MFU * known[1]
        rate = f"{flops / image_flops:,.1f} images/s, {_MFU:.0%} of {known[1] / 1e12:,.0f} TFLOP/s"
    pause = params.checkpoint_seconds or _CHECKPOINT_SECONDS
    machines = Machines(
        arguments.per_node,
        flops,
        arguments.link * 1e9 / 8,
        _INSIDE_BYTES,
        arguments.losses,
        pause,
    )
    _print("rate", f"{name}: {rate}")
    _print(
        "all-reduce",
        f"float32 gradients at {arguments.link:g} Gbit/s a device between nodes; checkpoints every "
        f"{duration(pause)}, {arguments.losses:g} losses a day of a node",
    )
    print(
        f"{'devices':>8} {'images':>7} {'sent':>9} {'step':>9} {'efficiency':>10} "
        f"{'time':>14} {'lost nodes':>10} {'lost work':>12}  cost"
    )
    for nodes in doublings(arguments.nodes):
        if nodes * arguments.per_node > params.batch_size:
            print(f"{nodes * arguments.per_node:>8} more devices than images of a step")
            continue
        one = scaled(
            machines,
            nodes,
            batch_size=params.batch_size,
            steps=made.schedule.total_steps,
            image_flops=image_flops,
            parameters=made.parameters,
        )
        hours = one.seconds / 3600
        price = prices.get(name)
        cost = "-" if price is None else f"{hours * one.devices * price:,.0f}"
        print(
            f"{one.devices:>8} {one.share:>7} {_bytes(int(one.wire_bytes)):>9} "
            f"{1e3 * one.step:>6.0f} ms {one.efficiency:>9.0%}  {duration(one.seconds):>14} "
            f"{one.losses:>10.1f} {duration(one.lost_seconds):>12}  {cost}"
        )


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _price(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        price = float(number)
    except ValueError:
        price = -1.0
    if not name or not 0 <= price < 1e6:
        raise ConfigError(f"--price {text}: write DEVICE=PER_HOUR, e.g. H100=2.49")
    return name, price


def _print(what: str, value: str) -> None:
    print(f"{what:<18} {value}")
