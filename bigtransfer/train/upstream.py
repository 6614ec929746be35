"""One upstream training in one of its processes, from its folder to its last step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtransfer.artifacts.base import Json
from bigtransfer.data.shards import Shards
from bigtransfer.errors import CheckpointError
from bigtransfer.model.resnet import ResNetV2
from bigtransfer.progress import progress
from bigtransfer.storage import as_json, lock, write_text
from bigtransfer.storage.places import target_at
from bigtransfer.storage.s3 import S3Path
from bigtransfer.train.callbacks import Pace, Speed, TrainingCallback
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.health import Health
from bigtransfer.train.interrupts import Interrupts
from bigtransfer.train.loop import DivergedError
from bigtransfer.train.run import Recipe, ResumableRun, RunFolder

Log = Callable[[int, dict[str, float]], None]
"""`log(step, metrics)`: where curves go."""


@dataclass(frozen=True)
class Origin:
    """What made a training."""

    key: str
    """Fingerprint: checkpoints of another are not gone on from."""
    code: str
    """Version of the code that trains."""
    recipe: Json
    """Params that decide the result, and the schedule; JSON values."""
    shards: Shards


class Training:
    """A training, and this process's part in it."""

    def __init__(
        self,
        origin: Origin,
        model: ResNetV2,
        recipe: Recipe,
        health: Health,
        compute: ComputeSettings,
        folder: Path,
        log: Log,
        *,
        mirror: str | None,
        pace: Pace,
        max_loss_factor: float,
        flops_share: float | None,
    ) -> None:
        """Put it together; nothing is opened yet.

        Args:
            origin: What makes it.
            model: The network as it starts, on its device.
            recipe: How its weights change.
            health: Evaluates it.
            compute: What it is computed on; a micro-batch size that once fitted is kept.
            folder: For resumable state, of this training alone.
            log: Receives curves, on the main process.
            mirror: S3 address that has a place for the checkpoints of each training.
            pace: When to evaluate and save.
            max_loss_factor: The training has diverged above so many times its first loss.
            flops_share: FLOPs of an image, as a share of what all devices can do in a second.
        """
        self.origin, self.batch_size = origin, recipe.batches.batch_size
        self._model, self._recipe, self._health, self._compute = model, recipe, health, compute
        self._folder, self._log, self._mirror, self._pace = folder, log, mirror, pace
        self._max_loss_factor, self._flops_share = max_loss_factor, flops_share
        self._group = compute.group
        self._total = recipe.schedule.total_steps

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder of the training, and go on from its newest good checkpoint.

        Raises:
            LockError: If another process trains the same.
        """
        with ExitStack() as held:
            if self._group.is_main_process:
                place = f"the training in {str(self._folder)!r}"
                held.enter_context(lock(self._folder / "lock", place))
                _say_what_is_not_used(self._folder)
            run = ResumableRun(self._model, self._recipe, self._compute, self._run_folder())
            self.run = held.enter_context(closing(run))
            self.run.require_room()
            self._restore()
            yield

    def _run_folder(self) -> RunFolder:
        target = None
        if self._mirror and self._group.is_main_process:
            target = target_at(S3Path.parse(self._mirror) / self.origin.key)
        meta = {
            "fingerprint": self.origin.key,
            "code": self.origin.code,
            "recipe": self.origin.recipe,
            "shards_digest": self.origin.shards.digest,
            "world_size": self._group.world_size,
            "draws": "keyed by seed and step: no generator has a state",
        }
        return RunFolder(self._folder, meta, _say, target, require_own=self._require_own)

    def _require_own(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that is not one of this training's."""
        if meta.get("fingerprint") != self.origin.key:
            raise CheckpointError(f"{str(folder)!r} belongs to another training")
        if not 0 < meta["step"] <= self._total:
            raise CheckpointError(f"{str(folder)!r} holds step {meta['step']}, beyond the last")

    def _restore(self) -> None:
        self._take_micro_batch_size()
        step = self.run.restore()
        first = None
        if step and self._group.is_main_process:
            for row in self.run.curve.rows:  # the tracker may lack some of these points
                self._log(row["step"], {k: v for k, v in row.items() if k != "step"})
            _say(f"resuming at step {step:,} of {self._total:,}")
            first = self.run.curve.value(1, "loss")
        self._first_loss = self._group.sum([first or 0.0])[0]

    @property
    def _hint(self) -> Path:
        """File that keeps the micro-batch size that fitted into memory."""
        return self._folder / "micro_batch_size"

    def _take_micro_batch_size(self) -> None:
        """Take the size that fitted last time, in all processes alike."""
        compute, smaller = self._compute, ""
        if self._group.is_main_process and self._hint.is_file():
            smaller = self._hint.read_text()
        size = self._group.agree(int(smaller) if smaller.isdigit() else 0)
        if size and not compute.device.is_tpu:
            compute.micro_batch_size = min(size, compute.micro_batch_size or size)

    def keep_micro_batch_size(self, images: int) -> None:
        """Keep for the next start how many images fit into memory."""
        _say(f"memory ran out; going on with {images} images per forward pass")
        write_text(self._hint, str(images))

    def train(self, interrupts: Interrupts) -> None:
        """Do the steps that are left.

        Raises:
            BigTransferError: As `pretrain` does.
            KeyboardInterrupt: After Ctrl-C, with a checkpoint written.
        """
        step = self.run.step
        with progress("pretrain", self._total, unit="step", start=step) as advance:
            speed = Speed(step, self.batch_size, self._flops_share, self._recipe.batches)
            callback = TrainingCallback(
                self.run, self.batch_size, self._pace, interrupts, self, advance, speed
            )
            if self._lacks_evaluation():
                callback.evaluate(step)
            try:
                self.run.train(callback, self._highest_loss)
            except DivergedError as error:
                self._keep_evidence(error)
                raise

    def _lacks_evaluation(self) -> bool:
        """Say whether it was interrupted between a step and its evaluation."""
        step = self.run.step
        due = step > 0 and step % self._pace.evaluation_steps == 0
        known = self._group.is_main_process and self.run.curve.has(step, "val_top1")
        return due and not self._group.agree(int(known))

    def _highest_loss(self) -> float:
        """Return the loss above which the training has diverged; any, before the first step."""
        return self._max_loss_factor * (self._first_loss or math.inf)

    def _keep_evidence(self, error: DivergedError) -> None:
        if self._group.is_main_process:
            samples = [self._recipe.batches.path_of(row) for row in error.rows]
            facts = {"step": error.step, "fault": str(error), "samples": samples}
            write_text(self._folder / f"diverged-{error.step:08d}.json", as_json(facts))

    def note(self, step: int, values: dict[str, float], *, by_clock: bool = False) -> None:
        """Write points into the journal, and tell the tracker of the new ones.

        What the clock says goes to the tracker alone: it is not part of the result.
        """
        if step == 1 and "loss" in values:
            self._first_loss = values["loss"]
        if not self._group.is_main_process:
            return
        if fresh := values if by_clock else self.run.curve.add(step, values):
            self._log(step, fresh)

    def look(self, between: Callable[[], None]) -> dict[str, float]:
        """Return validation accuracy and probe."""
        self.run.write_back()
        return self._health.look(self.run.model, between)


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
