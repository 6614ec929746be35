"""Upstream pretraining: from shards to an upstream checkpoint, resumable at any step.

The schedule is counted in images (total_steps = round(examples * epochs / batch_size)), so it is
the same for any number of processes. What a run is (`RECIPE`) decides its fingerprint; how it is
computed (device, processes, micro-batches, precision) may change between two starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bigtransfer.config import PretrainParams
from bigtransfer.data.batches import Squares, TrainBatches
from bigtransfer.data.shards import Shards, open_shards
from bigtransfer.errors import CheckpointError, ConfigError
from bigtransfer.model.checkpoint import write_checkpoint
from bigtransfer.model.costs import forward_macs
from bigtransfer.model.processor import use_cpu
from bigtransfer.model.resnet import create_model
from bigtransfer.progress import progress
from bigtransfer.storage import as_csv, as_json, lock, write_text
from bigtransfer.storage.places import Place, target_at
from bigtransfer.storage.s3 import S3Path
from bigtransfer.train.callbacks import Speed, TrainingCallback
from bigtransfer.train.checkpoints import JOURNAL, Checkpoints, State, read_state
from bigtransfer.train.code import code_version
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.curve import Curve
from bigtransfer.train.devices import choose_device
from bigtransfer.train.group import Group, environment_local_rank, lost_peers, open_group
from bigtransfer.train.health import Health, ProbePlan
from bigtransfer.train.interrupts import Interrupts, watched
from bigtransfer.train.loop import DivergedError, TrainStep, run_steps
from bigtransfer.train.loss import loss_named
from bigtransfer.train.parallel import parallelize, whole_state
from bigtransfer.train.saver import Saver
from bigtransfer.train.schedule import planned_schedule
from bigtransfer.train.state import fingerprint, require_fit, state_bytes
from bigtransfer.train.steps import choose_step

Log = Callable[[int, dict[str, float]], None]
"""`log(step, metrics)`: where curves go."""
RECIPE = (
    "architecture", "root", "norm", "loss", "head_bias", "batch_size", "momentum", "weight_decay",
    "precrop", "crop", "augmentation", "flip", "seed", "threads",
)  # fmt: skip
"""Params that decide the result, beside the schedule and the data."""


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
) -> dict[str, Any] | None:
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
        )
        stack.enter_context(nullcontext() if group.alone else lost_peers())
        training = Training(params, open_shards(shards), open_shards(probe), work, compute, log)
        if group.is_main_process:
            begin(training.key)
        with training.opened():
            training.run(interrupts)
            return training.write(outputs)


class Training:
    """One training, and this process's part in it."""

    def __init__(
        self,
        params: PretrainParams,
        shards: Shards,
        probe: Shards,
        work: Path,
        compute: ComputeSettings,
        log: Log,
    ) -> None:
        self._params, self._shards, self._compute, self._log = params, shards, compute, log
        group = self._group = compute.group
        self._train_step: TrainStep | None = None
        _require_possible(shards, group, params.batch_size, params.loss)
        rows = shards.rows("train")
        self._schedule = planned_schedule(
            len(rows),
            epochs=params.epochs,
            batch_size=params.batch_size,
            base_lr=params.base_lr,
            warmup_steps=params.warmup_steps,
            decay_epochs=params.decay_epochs,
        )
        self._recipe = {
            **{key: getattr(params, key) for key in RECIPE},
            "schedule": repr(self._schedule),
        }
        self._code = code_version(__name__)
        self.key = fingerprint(
            self._code if params.resume == "same_code" else None,
            recipe=self._recipe,
            shards=shards.digest,
        )
        self._folder = work / self.key
        self.model = create_model(
            params.architecture, len(shards.classes), params.root, params.seed, norm=params.norm
        ).recompute(compute.recompute)
        nn.init.constant_(self.model.head.bias, params.head_bias)
        self.model.to(compute.device.torch)
        squares = Squares(shards, rows, params.precrop, keep=params.augmentation == "square")
        self._batches = TrainBatches(
            squares,
            batch_size=params.batch_size,
            crop=params.crop,
            flip=params.flip,
            seed=params.seed,
            how=params.augmentation,
            rank=group.rank,
            world_size=group.world_size,
        )
        if lanes_line := uneven_lanes(self._batches.order.lanes, group):
            _say(lanes_line)
        tried = ProbePlan(params.probe.examples_per_class, params.probe.seeds)
        self._health = Health(shards, params.crop, tried, probe, group)

    @property
    def is_main_process(self) -> bool:
        """Say whether this process is the one that writes."""
        return self._group.is_main_process

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder of the training: its lock, its journal, its checkpoints."""
        with ExitStack() as held:
            if self.is_main_process:
                folder, mirror = self._folder, self._params.checkpoint_mirror
                held.enter_context(lock(folder / "lock", f"the training in {str(folder)!r}"))
                _say_what_is_not_used(folder)
                self.curve = Curve(folder / JOURNAL)
                held.callback(self.curve.close)
                self._checkpoints = Checkpoints(
                    folder, target_at(S3Path.parse(mirror) / self.key) if mirror else None, _say
                )
                self._saver = Saver(self._checkpoints)
                self._checkpoints.require_room(state_bytes(self.model))
            self._restore()
            yield

    def _restore(self) -> None:
        """Go on from the newest good checkpoint, in all processes."""
        group, params = self._group, self._params
        state: State | None = None
        self._step, smaller = 0, ""
        if group.is_main_process:
            if found := self._checkpoints.newest(self._fitting):
                folder, state = found
                self._step = int(folder.name.removeprefix("step-"))
                self.curve.take_from(folder / JOURNAL)
                for row in self.curve.rows:  # the tracker may lack some of these points
                    self._log(row["step"], {k: v for k, v in row.items() if k != "step"})
                _say(f"resuming at step {self._step:,} of {self._schedule.total_steps:,}")
            smaller = self._hint.read_text() if self._hint.is_file() else ""
        self._step = group.agree(self._step)
        first = self.curve.value(1, "loss") if group.is_main_process and self._step else None
        self._first_loss = group.sum([first or 0.0])[0]
        size = group.agree(int(smaller) if smaller.isdigit() else 0)
        if size and not self._compute.cuda_graph and not self._compute.device.is_tpu:
            self._compute.micro_batch_size = min(size, params.micro_batch_size or size)
        self._called, self.optimizer = parallelize(
            self.model,
            state,
            group,
            parallel=params.parallel,
            compiled=self._compute.compiled,
            momentum=params.momentum,
            weight_decay=params.weight_decay,
        )

    def _fitting(self, folder: Path, meta: dict[str, Any]) -> State:
        """Return the state in a checkpoint if it is one of this training's."""
        if meta.get("fingerprint") != self.key:
            raise CheckpointError(f"{str(folder)!r} belongs to another training")
        if not 0 < meta["step"] <= self._schedule.total_steps:
            raise CheckpointError(f"{str(folder)!r} holds step {meta['step']}, beyond the last")
        state = read_state(folder)
        require_fit(state, self.model, repr(str(folder)))
        if meta.get("code") != self._code:
            _say(
                f"{folder.name} was written by another version of this program or of PyTorch; "
                "going on with it (resume: any_code), no longer bit for bit"
            )
        return state

    @property
    def _hint(self) -> Path:
        """File that keeps the micro-batch size that fitted into memory."""
        return self._folder / "micro_batch_size"

    def run(self, interrupts: Interrupts) -> None:
        """Do the steps that are left.

        Raises:
            BigTransferError: As `pretrain` does.
            KeyboardInterrupt: After Ctrl-C, with a checkpoint written.
        """
        total = self._schedule.total_steps
        with progress("pretrain", total, unit="step", start=self._step) as advance:
            callback = TrainingCallback(
                total,
                self._params,
                self._group,
                interrupts,
                self,
                advance,
                self._speed(),
                self._saver if self.is_main_process else None,
            )
            if self._lacks_evaluation():
                callback.evaluate(self._step)
            try:
                self._train_step = choose_step(
                    self._called,
                    self.optimizer,
                    loss_named(self._params.loss),
                    self._batches.batch_size,
                    self._compute,
                    ran_out=callback.ran_out,
                )
                with closing(self._train_step):
                    run_steps(
                        self._train_step,
                        self._batches,
                        self._schedule,
                        mixup_alpha=None,
                        seed=self._params.seed,
                        start=self._step,
                        callback=callback,
                        group=self._group,
                        highest_loss=self._highest_loss,
                    )
            except DivergedError as error:
                self._keep_evidence(error)
                raise
            finally:
                if self.is_main_process:
                    self._saver.wait_quietly()

    def _speed(self) -> Speed:
        params, peak = self._params, self._compute.device.peak_flops
        share = None
        if peak is not None:
            macs = forward_macs(
                params.architecture,
                len(self._shards.classes),
                params.crop,
                params.root,
                params.norm,
            )
            share = 6 * macs / peak / self._group.world_size
        return Speed(self._step, params.batch_size, share, self._batches)

    def _lacks_evaluation(self) -> bool:
        """Say whether it was interrupted between a step and its evaluation."""
        due = self._step > 0 and self._step % self._params.evaluation_steps == 0
        known = self._group.is_main_process and self.curve.has(self._step, "val_top1")
        return due and not self._group.agree(int(known))

    def _highest_loss(self) -> float:
        """Return the loss above which the training has diverged; any, before the first step."""
        return self._params.max_loss_factor * (self._first_loss or math.inf)

    def _keep_evidence(self, error: DivergedError) -> None:
        if self.is_main_process:
            samples = [self._batches.path_of(row) for row in error.rows]
            facts = {"step": error.step, "fault": str(error), "samples": samples}
            write_text(self._folder / f"diverged-{error.step:08d}.json", as_json(facts))

    def note(self, step: int, values: dict[str, float], *, by_clock: bool = False) -> None:
        """Write points into the journal, and tell the tracker of the new ones.

        What the clock says goes to the tracker alone: it is not part of the result.
        """
        if step == 1 and "loss" in values:
            self._first_loss = values["loss"]
        if self.is_main_process and (fresh := values if by_clock else self.curve.add(step, values)):
            self._log(step, fresh)

    def keep_micro_batch_size(self, images: int) -> None:
        """Keep for the next start how many images fit into memory."""
        _say(f"memory ran out; going on with {images} images per forward pass")
        write_text(self._hint, str(images))

    def look(self, between: Callable[[], None]) -> dict[str, float]:
        """Return validation accuracy and probe."""
        self._write_back()
        return self._health.look(self.model, between)

    def _write_back(self) -> None:
        if self._train_step is not None:
            self._train_step.write_back()

    def save(self, step: int, *, wait: bool) -> None:
        """Begin a checkpoint; with `wait`, finish it too. All processes must call it."""
        self._write_back()
        state = whole_state(self.model, self.optimizer)
        if not self.is_main_process:
            return
        self.curve.fsync()
        meta = {
            "fingerprint": self.key,
            "code": self._code,
            "recipe": self._recipe,
            "shards_digest": self._shards.digest,
            "world_size": self._group.world_size,
            "draws": "keyed by seed and step: no generator has a state",
        }
        score = self.curve.value(step, "val_top1")
        self._saver.begin(step, state, meta, self.curve.path, score)
        if wait:
            self._saver.finish()
            self._checkpoints.wait_for_mirror()

    def write(self, outputs: Outputs) -> dict[str, Any] | None:
        """Write the results, then forget the checkpoints."""
        self._write_back()
        state = whole_state(self.model, self.optimizer)
        if not self.is_main_process:
            return None
        steps = self._schedule.total_steps
        last = self.curve.row(steps)
        meta = {
            **self._recipe,
            "classes": self._shards.classes,
            "dataset": self._shards.summary["dataset"],
            "shards_digest": self._shards.digest,
            "steps": steps,
        }
        result = {
            "val_top1": last["val_top1"],
            "loss": last["loss"],
            **{key: value for key, value in last.items() if key.startswith("probe_")},
            "steps": steps,
            "images": steps * self._params.batch_size,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }
        write_checkpoint(outputs.checkpoint, self.model, meta, state["weights"])
        write_text(outputs.metrics, as_json(result))
        write_text(outputs.history, as_csv(self.curve.rows))
        self._checkpoints.clear()
        return result


def _require_possible(shards: Shards, group: Group, batch_size: int, loss: str) -> None:
    """Refuse what cannot be trained, before anything is built.

    Raises:
        ConfigError: Naming the value.
    """
    if group.world_size > batch_size:
        raise ConfigError(
            f"batch_size {batch_size} is too small for {group.world_size} processes; raise "
            "it, or start fewer"
        )
    smallest = min(len(shards.rows(split)) for split in ("train", "val"))
    if group.world_size > smallest:
        raise ConfigError(
            f"dataset {shards.summary['dataset']!r} has a split of {smallest} images, too few for "
            f"{group.world_size} processes; start fewer"
        )
    if loss == "softmax" and shards.summary["multi_label"]:
        raise ConfigError(
            f"dataset {shards.summary['dataset']!r} has several labels per image, which loss: "
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


def _say_what_is_not_used(folder: Path) -> None:
    """Say that state of other params, data or code lies there, and is left alone."""
    others = sorted({p.parent.parent.name for p in folder.parent.glob("*/step-*/MANIFEST.json")})
    if unused := [name for name in others if name != folder.name]:
        _say(
            f"{str(folder.parent)!r} holds checkpoints of other params, data or code "
            f"({', '.join(unused)}); they are not used for this training"
        )


def _say(line: str) -> None:
    print(line, flush=True)
