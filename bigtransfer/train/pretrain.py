"""Upstream pretraining: from shards to an upstream checkpoint, resumable at any step."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bigtransfer.data.batches import Crop, Squares, TrainBatches
from bigtransfer.data.shards import Shards, open_shards
from bigtransfer.evaluate.metrics import topk_accuracy
from bigtransfer.evaluate.prediction import predict
from bigtransfer.model.checkpoint import write_checkpoint
from bigtransfer.model.resnet import Norm, ResNetV2, Root, create_model
from bigtransfer.progress import progress
from bigtransfer.storage import as_csv, as_json, write_text
from bigtransfer.train.loop import run_steps
from bigtransfer.train.optimizer import make_optimizer
from bigtransfer.train.schedule import Schedule
from bigtransfer.train.state import Progress, WorkFolder, fingerprint

Log = Callable[[int, dict[str, float]], None]
"""`log(step, metrics)`: where curves go."""

_EVALUATION_BATCH = 256
_STEPS_BETWEEN_ROWS = 20


def pretrain(
    shards_folder: Path,
    checkpoint: Path,
    metrics: Path,
    history: Path,
    work: Path,
    *,
    architecture: str,
    root: Root,
    norm: Norm,
    epochs: float,
    batch_size: int,
    base_lr: float,
    warmup_steps: int,
    decay_epochs: tuple[float, ...],
    momentum: float,
    weight_decay: float,
    precrop: int,
    crop: int,
    augmentation: Crop,
    flip: bool,
    seed: int,
    threads: int,
    checkpoint_steps: int,
    log: Log,
) -> dict[str, Any]:
    """Train a network on the train split and write it as an upstream checkpoint.

    The schedule is counted in images: total_steps = round(examples * epochs / batch_size).

    Args:
        shards_folder: Written by `shard`; needs the splits train and val.
        checkpoint: Checkpoint folder to write.
        metrics: JSON file to write the final figures to.
        history: CSV file to write the learning curve to.
        work: Folder for resumable state; a subfolder per fingerprint.
        architecture: Name of the network.
        root: `imagenet` or `small`.
        norm: `gn_ws`, `gn`, `bn_ws` or `bn`.
        epochs: Passes over the train split.
        batch_size: Images per optimiser step.
        base_lr: Peak rate per step.
        warmup_steps: Of linear warm-up.
        decay_epochs: The rate is divided by ten after each.
        momentum: Of SGD.
        weight_decay: L2 in the gradient of kernels.
        precrop: Side images are resized to, pixels.
        crop: Side of the random crop, and of evaluation, pixels.
        augmentation: `square` or `inception`.
        flip: Whether to mirror at random.
        seed: Of weights, order and augmentation.
        threads: Of PyTorch; part of the result, since sums round by thread.
        checkpoint_steps: Steps between resumable checkpoints.
        log: Receives curves.

    Returns:
        What the file `metrics` holds.
    """
    torch.set_num_threads(threads)
    shards = open_shards(shards_folder)
    model = create_model(architecture, len(shards.classes), root, seed, norm=norm)
    optimizer = make_optimizer(model, momentum=momentum, weight_decay=weight_decay)
    train = Squares(shards, shards.rows("train"), precrop, keep=augmentation == "square")
    val = Squares(shards, shards.rows("val"), crop)
    steps_per_epoch = len(train) / batch_size
    schedule = Schedule(
        total_steps=max(1, round(len(train) * epochs / batch_size)),
        base_lr=base_lr,
        warmup_steps=warmup_steps,
        decay_steps=tuple(round(epoch * steps_per_epoch) for epoch in decay_epochs),
    )
    recipe = {
        "architecture": architecture, "root": root, "norm": norm, "schedule": repr(schedule),
        "batch_size": batch_size, "momentum": momentum, "weight_decay": weight_decay,
        "precrop": precrop, "crop": crop, "augmentation": augmentation, "flip": flip, "seed": seed,
        "threads": threads,
    }  # fmt: skip
    state = WorkFolder(work / fingerprint(recipe=recipe, shards=shards.digest))
    done = state.restore(model, optimizer)
    if done.step:
        print(f"resuming at step {done.step:,} of {schedule.total_steps:,}", flush=True)
    batches = TrainBatches(
        train, batch_size=batch_size, crop=crop, flip=flip, seed=seed, how=augmentation
    )
    began = time.monotonic()
    with progress("pretrain", schedule.total_steps, unit="step", start=done.step) as advance:

        def after_step(step: int, loss: float, rate: float) -> None:
            done.step = step
            last = step == schedule.total_steps
            saves = step % checkpoint_steps == 0 or last
            if step % _STEPS_BETWEEN_ROWS == 0 or saves:
                row = {"step": step, "images": step * batch_size, "loss": loss, "rate": rate}
                if saves:
                    row["val_top1"] = _top1(model, val)
                done.history.append(row)
                waited = batches.waited_seconds / (time.monotonic() - began)
                curve = {key: row[key] for key in row if key != "step"}
                log(step, {**curve, "data_wait_fraction": waited})
            advance(step, f"loss {loss:.3f}")
            if saves and not last:
                state.save(model, optimizer, done)

        run_steps(
            model, optimizer, batches, schedule,
            mixup_alpha=None, seed=seed, start=done.step, after_step=after_step,
        )  # fmt: skip
    result = _write(checkpoint, metrics, history, model, shards, done, recipe)
    state.clear()
    return result


def _top1(model: ResNetV2, val: Squares) -> float:
    return topk_accuracy(predict(model, val, _EVALUATION_BATCH), val.labels, 1)


def _write(
    checkpoint: Path,
    metrics: Path,
    history: Path,
    model: ResNetV2,
    shards: Shards,
    done: Progress,
    recipe: dict[str, Any],
) -> dict[str, Any]:
    meta = {
        **recipe,
        "classes": shards.classes,
        "dataset": shards.summary["dataset"],
        "shards_digest": shards.digest,
        "steps": done.step,
    }
    result = {
        "val_top1": done.history[-1]["val_top1"],
        "loss": done.history[-1]["loss"],
        "steps": done.step,
        "images": done.step * recipe["batch_size"],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    write_checkpoint(checkpoint, model, meta)
    write_text(metrics, as_json(result))
    write_text(history, as_csv(done.history))
    return result
