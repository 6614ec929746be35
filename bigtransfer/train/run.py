"""One resumable run: a network, the folder that keeps its state, and the steps that are left.

What a kind of training adds is given to it: which checkpoints are its own and what they say of it,
and a callback that evaluates, saves and stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtransfer.data.batches import TrainBatches
from bigtransfer.model.resnet import ResNetV2
from bigtransfer.storage.places import Target
from bigtransfer.train.checkpoints import JOURNAL, Checkpoints, State, read_state
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.curve import Curve
from bigtransfer.train.loop import StepCallback, TrainStep, run_steps
from bigtransfer.train.loss import Loss
from bigtransfer.train.parallel import parallelize, whole_state
from bigtransfer.train.saver import Saver
from bigtransfer.train.schedule import Schedule
from bigtransfer.train.state import require_fit, state_bytes
from bigtransfer.train.steps import choose_step
from bigtransfer.train.stream import open_stream

SCORE = "val_top1"
"""Metric of the journal by which the best checkpoint is known, where it is noted."""


@dataclass(frozen=True)
class Recipe:
    """How weights change."""

    batches: TrainBatches
    """Of this process."""
    schedule: Schedule
    loss: Loss
    momentum: float
    weight_decay: float
    mixup_alpha: float | None
    """None: no MixUp."""
    seed: int
    """Of MixUp."""
    parallel: str = "ddp"
    """`ddp`: all weights in every process; `fsdp`: weights and momentum are split."""


@dataclass(frozen=True)
class RunFolder:
    """Where the state of a run is kept, and which states are its own."""

    path: Path
    """Of this run alone; made where absent."""
    meta: Mapping[str, Any]
    """JSON values that go into every checkpoint; among them `code`, the version that trains."""
    say: Callable[[str], None]
    """Receives lines for people."""
    mirror: Target | None = None
    """Place of this run alone in a bucket."""
    anew: bool = False
    """Whether to begin anew where there are checkpoints and none can be used."""
    require_own: Callable[[Path, Mapping[str, Any]], None] = lambda folder, meta: None
    """Raises `CheckpointError` if a checkpoint, by its meta, is of another run."""


class _Open:
    """What the main process alone holds open."""

    def __init__(self, folder: RunFolder) -> None:
        self.curve = Curve(folder.path / JOURNAL)
        self.checkpoints = Checkpoints(folder.path, folder.mirror, folder.say)
        self.saver = Saver(self.checkpoints)


class ResumableRun:
    """A run in one of its processes: every process makes one, the main process alone writes.

    In order: `restore`, `train`, `clear`; `close` in any case.
    """

    def __init__(
        self, model: ResNetV2, recipe: Recipe, compute: ComputeSettings, folder: RunFolder
    ) -> None:
        """Open the folder.

        Args:
            model: The network as it starts, on its device.
            recipe: How its weights change.
            compute: What it is computed on.
            folder: Where its state is kept.

        Raises:
            StorageError: If the journal cannot be read or written.
        """
        self.model, self._recipe, self._compute = model, recipe, compute
        self._folder, self.group = folder, compute.group
        self.step = 0
        """Finished steps that `train` begins with."""
        self.total_steps = recipe.schedule.total_steps
        self._open = _Open(folder) if self.is_main_process else None
        self._train_step: TrainStep | None = None

    def close(self) -> None:
        """Close the journal, and wait for what is on its way to the mirror."""
        if self._open is not None:
            self._open.checkpoints.close()
            self._open.curve.close()

    @property
    def is_main_process(self) -> bool:
        """Say whether this process is the one that writes."""
        return self.group.is_main_process

    @property
    def curve(self) -> Curve:
        """Return the journal; on the main process alone."""
        assert self._open is not None, "the main process alone has a journal"
        return self._open.curve

    def require_room(self) -> None:
        """Refuse to begin where the checkpoints will not fit.

        Raises:
            InfrastructureError: If the disk has too little room; names what is needed.
        """
        if self._open is not None:
            self._open.checkpoints.require_room(state_bytes(self.model))

    def restore(self) -> int:
        """Go on from the newest good checkpoint, in all processes; return its step, or 0.

        Raises:
            CheckpointError: If there are checkpoints and none can be used.
        """
        state: State | None = None
        if self._open is not None:
            found = self._open.checkpoints.newest(self._fitting, anew=self._folder.anew)
            if found is not None:
                folder, state = found
                self.step = int(folder.name.removeprefix("step-"))
                self.curve.take_from(folder / JOURNAL)
        self.step = self.group.agree(self.step)
        self._called, self.optimizer = parallelize(
            self.model,
            state,
            self.group,
            parallel=self._recipe.parallel,
            compiled=self._compute.compiled,
            momentum=self._recipe.momentum,
            weight_decay=self._recipe.weight_decay,
        )
        return self.step

    def train(
        self, callback: StepCallback, highest_loss: Callable[[], float] = lambda: math.inf
    ) -> None:
        """Do the steps that are left, and wait for the checkpoint that is being written.

        Args:
            callback: Is told of every step; calls `before_update` and `save` of this run.
            highest_loss: Returns above what the training has diverged.

        Raises:
            BigTransferError: As `run_steps` does, and what the callback raises.
        """
        recipe, stream = self._recipe, open_stream(self._compute.device.torch)
        try:
            self._train_step = choose_step(
                self._called,
                self.optimizer,
                recipe.loss,
                recipe.batches.batch_size,
                self._compute,
                mixes=bool(recipe.mixup_alpha),
                stream=stream,
                ran_out=callback.ran_out,
                say=self._folder.say if self.is_main_process else lambda line: None,
            )
            with closing(self._train_step):
                run_steps(
                    self._train_step,
                    recipe.batches,
                    recipe.schedule,
                    mixup_alpha=recipe.mixup_alpha,
                    seed=recipe.seed,
                    start=self.step,
                    callback=callback,
                    group=self.group,
                    highest_loss=highest_loss,
                    stream=stream,
                )
            self.write_back()
        finally:
            if self._open is not None:
                self._open.saver.wait_quietly()

    def write_back(self) -> None:
        """Bring the weights to where PyTorch sees them; call it before a look at the network."""
        if self._train_step is not None:
            self._train_step.write_back()

    def whole_state(self) -> State:
        """Return weights and momentum as whole tensors; every process must call it."""
        self.write_back()
        return whole_state(self.model, self.optimizer)

    def save(self, step: int, *, wait: bool) -> None:
        """Begin a checkpoint; with `wait`, finish it too. All processes must call it.

        Args:
            step: Finished steps.
            wait: Whether to return only when it is written, and sent to the mirror.

        Raises:
            BigTransferError: What went wrong with the one before, or, with `wait`, with this one.
        """
        state = self.whole_state()  # a collective: before the others leave
        if self._open is None:
            return
        curve, saver = self._open.curve, self._open.saver
        curve.fsync()
        saver.begin(step, state, self._folder.meta, curve.path, curve.value(step, SCORE))
        if wait:
            saver.finish()
            self._open.checkpoints.wait_for_mirror()

    def is_due(self, seconds: float) -> bool:
        """Say whether the last checkpoint was begun so long ago; never but on the main process."""
        return self._open is not None and self._open.saver.is_due(seconds)

    def before_update(self) -> None:
        """Wait until the weights are copied that a checkpoint is to hold.

        Raises:
            BigTransferError: If a checkpoint could not be written.
        """
        if self._open is not None:
            self._open.saver.before_update()
            self._open.saver.check()

    def clear(self, *, keep_mirror: bool = False) -> None:
        """Forget the checkpoints: the run is finished and its output is in place.

        Args:
            keep_mirror: Whether the last one stays in the mirror.
        """
        if self._open is not None:
            self._open.checkpoints.clear(keep_mirror=keep_mirror)

    def _fitting(self, folder: Path, meta: Mapping[str, Any]) -> State:
        """Return the state in a checkpoint if it is one of this run's."""
        self._folder.require_own(folder, meta)
        state = read_state(folder)
        require_fit(state, self.model, repr(str(folder)))
        if meta.get("code") != self._folder.meta["code"]:
            self._folder.say(
                f"{folder.name} was written by another version of this program or of PyTorch; "
                "going on with it (resume: any_code), no longer bit for bit"
            )
        return state
