"""Upstream pretraining: from shards to an upstream checkpoint, resumable at any step.

The schedule is counted in images (total_steps = round(examples * epochs / batch_size)), so it is
the same for any number of processes. What a run is (`PretrainParams.RECIPE`) decides its
fingerprint; how it is computed (device, processes, micro-batches, precision) may change between
two starts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bigtransfer.artifacts.decoding import as_stored_line
from bigtransfer.artifacts.weights import UpstreamMeta
from bigtransfer.config import PretrainParams
from bigtransfer.data.batches import Squares, TrainBatches
from bigtransfer.data.decoding_workers import decoding_workers
from bigtransfer.data.shards import Shards, open_shards
from bigtransfer.errors import ConfigError
from bigtransfer.model.checkpoint import write_checkpoint
from bigtransfer.model.macs import FLOPS_PER_MAC, forward_macs
from bigtransfer.model.processor import use_cpu
from bigtransfer.model.resnet import create_model
from bigtransfer.storage import as_csv, as_json, write_text
from bigtransfer.storage.places import Place
from bigtransfer.train.callbacks import Pace
from bigtransfer.train.code import code_version
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.devices import choose_device
from bigtransfer.train.group import Group, environment_local_rank, lost_peers, open_group
from bigtransfer.train.health import Health, ProbePlan
from bigtransfer.train.interrupts import watched
from bigtransfer.train.loss import loss_named
from bigtransfer.train.run import Recipe
from bigtransfer.train.schedule import planned_schedule
from bigtransfer.train.state import fingerprint
from bigtransfer.train.upstream import Log, Origin, Training


@dataclass(frozen=True)
class Outputs:
    """What a finished run writes."""

    checkpoint: Path
    metrics: Path
    history: Path


def pretrain(
    params: PretrainParams,
    shards: Place,
    probe: Place,
    outputs: Outputs,
    work: Path,
    log: Log,
    begin: Callable[[str], None] = lambda key: None,
    *,
    keep_mirror: bool = False,
    keep_state: bool = False,
) -> dict[str, float] | None:
    """Train a network on the train split and write it as an upstream checkpoint.

    Started by `torchrun`, every process calls this; the main process alone writes and logs.

    Args:
        params: The recipe, and how it is computed.
        shards: Written by `shard`; needs the splits train and val.
        probe: Shards of the dataset on which frozen features are tried.
        outputs: Where the results go.
        work: Folder for resumable state; a subfolder per fingerprint.
        log: Receives curves, on the main process.
        begin: Is told the fingerprint of the training, on the main process, before any curve.
        keep_mirror: Whether the mirror keeps the last checkpoint: the output may still be lost.
        keep_state: Whether the last checkpoint stays in `work`, for the same reason.

    Returns:
        What the file `metrics` holds; None where this process is not the main process.

    Raises:
        BigTransferError: If the loss is no number any more, or a recipe or a checkpoint does not
            fit.
        LockError: If another process trains the same.
        InfrastructureError: After SIGTERM, a lost process, a full disk: the same again goes on.
    """
    use_cpu(params.threads)
    device = choose_device(params.device, environment_local_rank())
    with (
        watched(params.stop_seconds) as interrupts,
        open_group(device.torch) as group,
        ExitStack() as stack,
    ):
        compute = ComputeSettings(
            device,
            group,
            params.precision,
            params.micro_batch_size,
            params.recompute,
            params.compile,
            params.cuda_graph,
            together=1 if params.norm in ("gn", "gn_ws") else params.norm_batch,
        )
        stack.enter_context(nullcontext() if group.alone else lost_peers())
        data = open_shards(shards)
        training = _training_of(params, data, open_shards(probe), work, compute, log)
        if group.is_main_process:
            if line := as_stored_line(f"dataset {params.dataset!r}", data.summary.decode):
                print(line, flush=True)
            begin(training.origin.key)
        with training.opened():
            training.train(interrupts)
            return write_results(outputs, training, keep_mirror=keep_mirror, keep_state=keep_state)


def _training_of(
    params: PretrainParams,
    shards: Shards,
    probe: Shards,
    work: Path,
    compute: ComputeSettings,
    log: Log,
) -> Training:
    """Turn the section into what trains: from here on there are plain values."""
    group = compute.group
    _require_possible(shards, group, params)
    every = shards.rows("train")
    rows = nested(every, params.trained_on(len(every)), params.seed)
    schedule = planned_schedule(
        len(rows),
        epochs=params.epochs,
        batch_size=params.batch_size,
        base_lr=params.base_lr,
        warmup_steps=params.warmup_steps,
        decay_epochs=params.decay_epochs,
    )
    made_by = {**params.recipe, "schedule": repr(schedule)}
    code = code_version(__name__)
    key = fingerprint(
        code if params.resume == "same_code" else None, recipe=made_by, shards=shards.content_digest
    )
    model = create_model(
        params.architecture,
        len(shards.classes),
        params.root,
        params.seed,
        norm=params.norm,
        norm_batch=params.norm_batch,
    ).recompute(compute.recompute)
    nn.init.constant_(model.head.bias, params.head_bias)
    model.to(compute.device.torch)
    workers = decoding_workers(compute.device.is_cuda)
    squares = Squares(
        shards,
        rows,
        params.precrop,
        keep=params.augmentation == "square",
        workers=workers,
    )
    batches = TrainBatches(
        squares,
        batch_size=params.batch_size,
        crop=params.crop,
        flip=params.flip,
        seed=params.seed,
        how=params.augmentation,
        rank=group.rank,
        world_size=group.world_size,
    )
    if lanes_line := uneven_lanes(batches.order.lanes, group):
        print(lanes_line, flush=True)
    tried = ProbePlan(params.probe.examples_per_class, params.probe.seeds)
    health = Health(shards, params.crop, tried, probe, group, workers=workers)
    recipe = Recipe(
        batches,
        schedule,
        loss_named(params.loss),
        momentum=params.momentum,
        weight_decay=params.weight_decay,
        mixup_alpha=None,
        seed=params.seed,
        parallel=params.parallel,
    )
    share = None
    if (peak := compute.device.peak_flops) is not None:
        macs = forward_macs(params.architecture, len(shards.classes), params.crop, params.root)
        share = FLOPS_PER_MAC * macs / peak / group.world_size
    return Training(
        Origin(key, code, made_by, shards),
        model,
        recipe,
        health,
        compute,
        work / key,
        log,
        mirror=params.checkpoint_mirror,
        pace=Pace(params.evaluation_steps, params.checkpoint_steps, params.checkpoint_seconds),
        max_loss_factor=params.max_loss_factor,
        flops_share=share,
    )


def write_results(
    outputs: Outputs, training: Training, *, keep_mirror: bool = False, keep_state: bool = False
) -> dict[str, float] | None:
    """Write what a finished training made, then forget its checkpoints.

    Args:
        outputs: Where it goes.
        training: At its last step; every process must call it.
        keep_mirror: Whether the last checkpoint stays in the mirror.
        keep_state: Whether all of its state stays.

    Returns:
        What the file `metrics` holds; None where this process is not the main process.
    """
    run, origin = training.run, training.origin
    state = run.whole_state()
    if not run.is_main_process:
        return None
    steps = run.total_steps
    last = run.curve.row(steps)
    recipe, shards = origin.recipe, origin.shards
    meta = UpstreamMeta.model_validate(
        {
            **{key: recipe[key] for key in ("architecture", "root", "norm", "crop")},
            "classes": tuple(shards.classes),
            "decode": shards.summary.decode,
            "dataset": shards.summary.dataset,
            "shards_digest": shards.digest,
            "steps": steps,
            "recipe": recipe,
        }
    )
    result = {
        "val_top1": last["val_top1"],
        "loss": last["loss"],
        **{key: value for key, value in last.items() if key.startswith("probe_")},
        "steps": steps,
        "images": steps * training.batch_size,
        "parameters": sum(p.numel() for p in run.model.parameters()),
    }
    write_checkpoint(outputs.checkpoint, run.model, meta, state["weights"])
    write_text(outputs.metrics, as_json(result))
    write_text(outputs.history, as_csv(run.curve.rows))
    if not keep_state:
        run.clear(keep_mirror=keep_mirror)
    return result


def nested(rows: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return some rows, in their order; more of them of the same seed hold fewer.

    Args:
        rows: All of them.
        count: That are wanted.
        seed: Of the choice.
    """
    if count == len(rows):
        return rows
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    found: NDArray[np.int64] = rows[np.sort(chosen)]
    return found


def _require_possible(shards: Shards, group: Group, params: PretrainParams) -> None:
    """Refuse what cannot be trained, before anything is built.

    Raises:
        ConfigError: Naming the value.
    """
    batch_size, loss = params.batch_size, params.loss
    if params.norm_batch is not None and batch_size % (group.world_size * params.norm_batch):
        raise ConfigError(
            f"norm_batch {params.norm_batch} does not divide the images of each of "
            f"{group.world_size} processes, {batch_size} in all; give another of the two"
        )
    if group.world_size > batch_size:
        raise ConfigError(
            f"batch_size {batch_size} is too small for {group.world_size} processes; raise "
            "it, or start fewer"
        )
    smallest = min(len(shards.rows(split)) for split in ("train", "val"))
    if group.world_size > smallest:
        raise ConfigError(
            f"dataset {shards.summary.dataset!r} has a split of {smallest} images, too few for "
            f"{group.world_size} processes; start fewer"
        )
    if loss == "softmax" and shards.summary.multi_label:
        raise ConfigError(
            f"dataset {shards.summary.dataset!r} has several labels per image, which loss: "
            "softmax cannot learn; set pretrain.loss to sigmoid"
        )


def uneven_lanes(lanes: int, group: Group) -> str | None:
    """Return what is to be said where processes do not divide the lanes of the order."""
    if not group.is_main_process or lanes == 1 or lanes % group.world_size == 0:
        return None
    return (
        f"{group.world_size} processes do not divide the {lanes} lanes of the shards: some shards "
        "are read by two of them; the batches are the same"
    )
